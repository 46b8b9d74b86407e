//! The kernels compiled into this program, and those loaded on a device.
//!
//! In: the table that build.rs made. Out: functions to launch; what ptxas said of them. Owns: loaded modules.
//! Not here: arguments of a launch (`ops/`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::driver::{Device, Function, Module};
use crate::{Error, Result};

/// One file of kernels/, compiled.
pub struct Kernel {
    /// The file's name without `.cu`.
    pub name: &'static str,
    /// PTX for compute capability 8.0, ended by a zero byte.
    pub ptx: &'static [u8],
    pub cubins: &'static [Cubin],
}

/// Machine code for one part.
pub struct Cubin {
    /// `80`, `90a`.
    pub arch: &'static str,
    pub image: &'static [u8],
    /// ptxas -v.
    pub report: &'static str,
}

// TOOLCHAIN: what nvcc says it is, None where there was none. KERNELS: one entry a file.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What an entry needs of a multiprocessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    pub entry: String,
    pub registers: u32,
    /// Bytes of registers that did not fit; stores and loads together.
    pub spill_bytes: u32,
    /// Static.
    pub shared_bytes: u32,
}

impl Kernel {
    /// The file `name`.
    pub fn find(name: &str) -> Option<&'static Kernel> {
        KERNELS.iter().find(|k| k.name == name)
    }

    /// The machine code that runs on a part: same major version, newest minor that is not above it.
    pub fn cubin(&self, (major, minor): (u32, u32)) -> Option<&'static Cubin> {
        let fits = |c: &&Cubin| c.arch.parse().is_ok_and(|n: u32| n / 10 == major && n % 10 <= minor);
        self.cubins.iter().filter(fits).max_by_key(|c| c.arch.parse::<u32>().unwrap_or(0))
    }
}

impl Cubin {
    /// The entries in ptxas' report.
    pub fn resources(&self) -> Vec<Resources> {
        let mut all: Vec<Resources> = Vec::new();
        for line in self.report.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let entry = rest.split('\'').next().unwrap_or_default().to_string();
                all.push(Resources { entry, registers: 0, spill_bytes: 0, shared_bytes: 0 });
            }
            let Some(last) = all.last_mut() else { continue };
            last.registers = last.registers.max(number_before(line, " registers"));
            last.spill_bytes += number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
            last.shared_bytes = last.shared_bytes.max(number_before(line, " bytes smem"));
        }
        all
    }
}

/// The number that stands before `unit` in a line; 0 where there is none.
fn number_before(line: &str, unit: &str) -> u32 {
    let Some(at) = line.find(unit) else { return 0 };
    let digits = line[..at].rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

/// The kernels loaded on one device.
pub struct KernelCache {
    device: Arc<Device>,
    modules: Mutex<HashMap<&'static str, Arc<Module>>>,
}

impl KernelCache {
    pub fn new(device: Arc<Device>) -> KernelCache {
        KernelCache { device, modules: Mutex::new(HashMap::new()) }
    }

    /// An entry of a kernel file; the file is loaded at the first use of one.
    pub fn function(&self, file: &'static str, entry: &str) -> Result<Function> {
        let mut modules =
            self.modules.lock().map_err(|_| Error::Internal("a thread panicked while it loaded a kernel".into()))?;
        let module = match modules.get(file) {
            Some(module) => module.clone(),
            None => {
                let module = Arc::new(self.load(file)?);
                modules.insert(file, module.clone());
                module
            }
        };
        module.function(entry)
    }

    /// Machine code where there is some for this part and the driver takes it, otherwise PTX.
    fn load(&self, file: &str) -> Result<Module> {
        let kernel = Kernel::find(file).ok_or_else(|| Error::Internal(format!("no kernel file {file}.cu")))?;
        if let Some(cubin) = kernel.cubin(self.device.compute_capability()) {
            // An older driver than the toolkit may refuse its machine code and still compile the PTX. Any other failure
            // would meet the PTX too, or hide a fault of the device.
            if let Some(module) = Module::load_cubin(&self.device, file, cubin.image)? {
                return Ok(module);
            }
            tracing::debug!("{file}: the driver does not take machine code for sm_{}, it compiles the PTX", cubin.arch);
        }
        Module::load_ptx(&self.device, file, kernel.ptx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_of_the_nearest_part_is_chosen() {
        const fn cubin(arch: &'static str) -> Cubin {
            Cubin { arch, image: &[], report: "" }
        }
        static CUBINS: [Cubin; 5] = [cubin("80"), cubin("89"), cubin("86"), cubin("90a"), cubin("100")];
        let kernel = Kernel { name: "x", ptx: &[], cubins: &CUBINS };
        let chosen = |part| kernel.cubin(part).map(|c| c.arch);
        assert_eq!(chosen((8, 0)), Some("80"));
        assert_eq!(chosen((8, 7)), Some("86"));
        assert_eq!(chosen((8, 9)), Some("89"));
        assert_eq!(chosen((9, 0)), None);
        assert_eq!(chosen((10, 3)), Some("100"));
        assert_eq!(chosen((7, 5)), None);
    }

    #[test]
    fn reports_are_read() {
        let report = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'first' for 'sm_90'\n\
            ptxas info    : Function properties for first\n    40 bytes stack frame, 24 bytes spill stores, 84 bytes spill loads\n\
            ptxas info    : Used 40 registers, used 1 barriers, 40 bytes cumulative stack size, 32 bytes smem\n\
            ptxas info    : Compiling entry function 'second' for 'sm_90'\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 255 registers, used 1 barriers, 404 bytes cmem[0]\n";
        let cubin = Cubin { arch: "90", image: &[], report };
        let want = |entry: &str, registers, spill_bytes, shared_bytes| Resources {
            entry: entry.into(),
            registers,
            spill_bytes,
            shared_bytes,
        };
        assert_eq!(cubin.resources(), [want("first", 40, 108, 32), want("second", 255, 0, 0)]);
    }

    #[test]
    fn every_kernel_has_its_ptx_and_spills_nothing() {
        assert_eq!(TOOLCHAIN.is_none(), KERNELS.is_empty(), "kernels come with a toolchain");
        for kernel in KERNELS {
            assert!(kernel.ptx.ends_with(b"\0") && kernel.ptx.windows(7).any(|w| w == b".entry "), "{}", kernel.name);
            for cubin in kernel.cubins {
                let entries = cubin.resources();
                assert!(!entries.is_empty(), "{} sm_{}: no report", kernel.name, cubin.arch);
                for entry in entries {
                    assert!(entry.registers > 0, "{entry:?}");
                    assert_eq!(entry.spill_bytes, 0, "{} sm_{}: {entry:?}", kernel.name, cubin.arch);
                }
            }
        }
    }
}
