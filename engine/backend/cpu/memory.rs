//! Memory of the machine and of this process, from /proc where there is one.
//!
//! In: nothing. Out: bytes. Zero means unknown.

/// Bytes of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    /// What can be taken without swapping.
    pub available: u64,
}

/// The machine's memory, and a control group's limit where that is lower.
pub fn read() -> Memory {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        line.trim_start_matches(':').trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
    };
    let mut memory = Memory { total: field("MemTotal").unwrap_or(0), available: field("MemAvailable").unwrap_or(0) };
    let group = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    if let (Some(max), Some(current)) = (group("memory.max"), group("memory.current")) {
        memory.total = memory.total.min(max);
        memory.available = memory.available.min(max.saturating_sub(current));
    }
    memory
}

#[cfg(test)]
mod tests {
    #[test]
    fn available_is_at_most_total() {
        let m = super::read();
        assert!(m.available <= m.total, "{m:?}");
        assert_eq!(m.total > 0, std::path::Path::new("/proc/meminfo").exists());
    }
}
