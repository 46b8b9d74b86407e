//! Flags of `engine caption`.
//!
//! In: the command line and the environment. Out: checked choices. Not here: what is done with them.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::discover::{Discovery, Pattern, Shard};
use super::progress::LogFormat;
use super::prompt::Template;
use super::sidecar::{Existing, Kind};
use super::styles::Styles;
use crate::cli::args::{ImageArgs, ModelArgs, SamplingArgs, parse_switch, read_text};
use crate::{Error, Result};

/// What is asked where nothing else is.
const DEFAULT_PROMPT: &str = "Describe the image.";

/// Flags of `engine caption`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "A caption file has one JSON object a line: path, caption, model, tokens, image_tokens, seconds, sha256. \
A path that is not UTF-8 also has path_bytes, its bytes in base64; --filelist reads both.\n\
A run that was stopped or killed goes on when the same command is given again. Exit codes: 0 all captioned, 3 some failed, \
7 output not writable, 130 and 143 stopped by SIGINT and SIGTERM."
)]
pub struct CaptionArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub images: ImageArgs,
    /// Folders, and files whatever they are called
    #[arg(value_name = "DIR|FILE", env = "ENGINE_PATHS", value_delimiter = None)]
    pub paths: Vec<PathBuf>,
    /// Folders in folders too
    #[arg(short, long, env = "ENGINE_RECURSIVE", value_parser = parse_switch)]
    pub recursive: bool,
    /// Only files of folders whose name fits, such as '*.png'; with a slash, whose path below the folder does
    #[arg(long, env = "ENGINE_GLOB", value_name = "PATTERN", value_parser = Pattern::parse)]
    pub glob: Option<Pattern>,
    /// Files to caption: a path a line, or JSON objects with `path` (--failed and --out write such), or paths ended by
    /// zero bytes; `-` is standard input
    #[arg(long, env = "ENGINE_FILELIST", value_name = "F")]
    pub filelist: Option<PathBuf>,
    /// What to ask [default: Describe the image.]; {name}, {stem} and {directory} are the file's
    #[arg(short, long, env = "ENGINE_PROMPT", value_name = "T", conflicts_with = "prompt_file")]
    pub prompt: Option<String>,
    /// As --prompt, read from a file
    #[arg(long, env = "ENGINE_PROMPT_FILE", value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,
    /// A kind of caption, instead of a prompt; --list-styles shows all
    #[arg(long, env = "ENGINE_STYLE", value_name = "NAME", conflicts_with_all = ["prompt", "prompt_file"])]
    pub style: Option<String>,
    /// Of a style: any, a number of words, short, medium or long
    #[arg(long, env = "ENGINE_LENGTH", value_name = "L", conflicts_with_all = ["prompt", "prompt_file"])]
    pub length: Option<String>,
    /// Of a style: what the person in the picture is called
    #[arg(long, env = "ENGINE_NAME", value_name = "X", conflicts_with_all = ["prompt", "prompt_file"])]
    pub name: Option<String>,
    /// Of a style: an extra wish by name; may repeat
    #[arg(long, env = "ENGINE_OPTION", value_name = "NAME", conflicts_with_all = ["prompt", "prompt_file"])]
    pub option: Vec<String>,
    /// Print the styles, lengths and options, and end
    #[arg(long)]
    pub list_styles: bool,
    /// A first turn
    #[arg(long, env = "ENGINE_SYSTEM", value_name = "T", conflicts_with = "raw")]
    pub system: Option<String>,
    /// Give the prompt to the model's processor as it is, without a chat template
    #[arg(long, env = "ENGINE_RAW", value_parser = parse_switch)]
    pub raw: bool,
    /// The caption file; `-` is standard output, which cannot be resumed [default: captions.jsonl]
    #[arg(short, long, alias = "jsonl", env = "ENGINE_OUT", value_name = "FILE.jsonl")]
    pub out: Option<PathBuf>,
    /// A file beside every picture too; in txt and caption on one line
    #[arg(long, alias = "ext", env = "ENGINE_SIDECAR", value_name = "KIND")]
    pub sidecar: Option<Kind>,
    /// What becomes of pictures that have a caption: a sidecar with --sidecar, otherwise a line of the caption file
    #[arg(long, env = "ENGINE_EXISTING", value_name = "MODE", default_value = "skip")]
    pub existing: Existing,
    /// Text before every caption
    #[arg(long, env = "ENGINE_PREPEND", value_name = "T", default_value = "")]
    pub prepend: String,
    /// Text behind every caption
    #[arg(long, env = "ENGINE_APPEND", value_name = "T", default_value = "")]
    pub append: String,
    /// Where failures are listed; --filelist takes it [default: failed.jsonl beside the caption file]
    #[arg(long, env = "ENGINE_FAILED", value_name = "FILE.jsonl")]
    pub failed: Option<PathBuf>,
    /// The I-th of N parts, decided by each path alone, for several processes or machines
    #[arg(long, env = "ENGINE_SHARD", value_name = "I/N", value_parser = Shard::parse)]
    pub shard: Option<Shard>,
    /// Print every result on standard output as a JSON line, failures included
    #[arg(long, env = "ENGINE_JSON", value_parser = parse_switch)]
    pub json: bool,
    /// Form of what is said on standard error
    #[arg(long, env = "ENGINE_LOG_FORMAT", value_name = "FORM", default_value = "text")]
    pub log_format: LogFormat,
    /// Seconds between two lines of progress where standard error is no terminal
    #[arg(long, env = "ENGINE_LOG_INTERVAL", value_name = "SECONDS", default_value = "10", value_parser = parse_interval)]
    pub log_interval: Duration,
}

fn parse_interval(text: &str) -> std::result::Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.1..=86_400.0).contains(&s) => Ok(Duration::from_secs_f64(s)),
        _ => Err("expected seconds from 0.1 to 86400".to_string()),
    }
}

/// What to ask, and what stands between two captions of one picture.
pub struct Question {
    pub text: String,
    pub template: Template,
    pub separator: String,
}

impl CaptionArgs {
    /// The prompt. Errors: [`Error::Request`].
    pub fn question(&self) -> Result<Question> {
        let mut separator = " ".to_string();
        let text = match (&self.prompt, &self.prompt_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => {
                let text = String::from_utf8(read_text(path, "--prompt-file")?)
                    .map_err(|_| Error::Request(format!("--prompt-file {}: not UTF-8", path.display())))?;
                text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).to_string()
            }
            (None, None)
                if self.style.is_some() || self.length.is_some() || self.name.is_some() || !self.option.is_empty() =>
            {
                let styles = Styles::read()?;
                let style = styles.style(self.style.as_deref().unwrap_or("descriptive"))?;
                separator.clone_from(&style.separator);
                styles.prompt(style, self.length.as_deref().unwrap_or("any"), self.name.as_deref(), &self.option)?
            }
            (None, None) => DEFAULT_PROMPT.to_string(),
        };
        Ok(Question { template: Template::parse(&text)?, text, separator })
    }

    /// Where to look for files.
    pub fn discovery(&self) -> Discovery {
        Discovery {
            paths: self.paths.clone(),
            filelist: self.filelist.clone(),
            recursive: self.recursive,
            glob: self.glob.clone(),
            shard: self.shard,
        }
    }

    /// The caption file; each shard has its own.
    pub fn out(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| self.of_shard("captions").into())
    }

    /// Where failures go; nowhere where the captions go to a stream and no name is given.
    pub fn failed(&self, out: &std::path::Path, out_is_stream: bool) -> Option<PathBuf> {
        match &self.failed {
            Some(path) => Some(path.clone()),
            None if out_is_stream => None,
            None => Some(out.with_file_name(self.of_shard("failed"))),
        }
    }

    fn of_shard(&self, name: &str) -> String {
        match self.shard {
            Some(s) => format!("{name}.{}-of-{}.jsonl", s.index, s.count),
            None => format!("{name}.jsonl"),
        }
    }
}
