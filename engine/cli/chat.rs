//! `engine chat`: several turns in the terminal. `/image PATH` adds a picture to the next message.
//!
//! In: lines on stdin. Out: answers on stdout, prompts and messages on stderr. What was said before is not computed
//! again: the prefix cache holds it.

use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use clap::Args;

use super::Outcome;
use super::args::{ImageArgs, ModelArgs, SamplingArgs};
use super::output;
use crate::input::message::{ImageSource, Message, Part, Role};
use crate::run::engine::Engine;
use crate::run::request::{Event, Prompt, Request};
use crate::{Error, Result};

/// Flags of `engine chat`.
#[derive(Debug, Clone, Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    /// A first turn
    #[arg(long, env = "ENGINE_SYSTEM", value_name = "T")]
    pub system: Option<String>,
    /// A picture for the first message; may repeat
    #[arg(long, env = "ENGINE_IMAGE", value_name = "F")]
    pub image: Vec<String>,
}

const HELP: &str = "/image PATH  add a picture to the next message\n/reset       forget everything\n/exit        end";

/// Runs the command until the input ends.
pub fn chat(args: ChatArgs) -> Outcome {
    let options = args.model.options()?;
    args.model.introduce();
    let engine = Engine::open(options)?;
    let system = || args.system.clone().map(|s| Message::text(Role::System, s)).into_iter().collect::<Vec<_>>();
    let mut turns = system();
    let mut images = args.image.clone();
    let interactive = std::io::stdin().is_terminal();
    if interactive {
        output::message(HELP);
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if interactive {
            // A prompt that cannot be shown is no reason to stop.
            let mut err = std::io::stderr();
            let _ = write!(err, "> ").and_then(|()| err.flush());
        }
        let Some(line) = lines.next() else { return Ok(ExitCode::SUCCESS) };
        let line = line.map_err(|e| Error::Request(format!("stdin: {e}")))?;
        let line = line.trim();
        match line.split_once(char::is_whitespace).map_or((line, ""), |(c, rest)| (c, rest.trim())) {
            ("", _) => {}
            ("/exit" | "/quit", _) => return Ok(ExitCode::SUCCESS),
            ("/help", _) => output::message(HELP),
            ("/reset", _) => {
                turns = system();
                images.clear();
            }
            ("/image", "") => output::message("error: /image: expected a path or URL"),
            ("/image", "-") => {
                output::message("error: /image -: expected a path or URL, standard input holds the chat")
            }
            ("/image", path) => images.push(path.to_string()),
            (word, _) if word.starts_with('/') && !word[1..].contains('/') => {
                output::message(format_args!("error: {word}: not a command\n{HELP}"))
            }
            _ => {
                let mut content: Vec<Part> = images.drain(..).map(|i| Part::Image(ImageSource::Path(i))).collect();
                content.push(Part::Text(line.to_string()));
                turns.push(Message { role: Role::User, content });
                match turn(&engine, &turns, &args) {
                    Ok(answer) => turns.push(Message::text(Role::Assistant, answer)),
                    Err(e @ (Error::Request(_) | Error::Unsupported(_))) => {
                        output::message(format_args!("error: {e}"));
                        turns.pop();
                    }
                    Err(e) => return Err(e),
                }
            }
        }
    }
}

fn turn(engine: &Engine, turns: &[Message], args: &ChatArgs) -> Result<String> {
    let mut request = Request::new(Prompt::Messages(turns.to_vec()), Vec::new());
    request.sampling = args.sampling.options();
    request.decode = args.images.options()?;
    let mut answer = String::new();
    for event in engine.submit(&request)? {
        match event? {
            Event::Token { text, .. } => output::write(&text)?,
            Event::Done(done) => answer = done.text,
            Event::Started { .. } => {}
        }
    }
    output::write("\n")?;
    Ok(answer)
}
