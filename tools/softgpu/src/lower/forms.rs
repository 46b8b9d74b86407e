//! Every form of every instruction that is accepted: the grammar of opcodes.
//! In: an opcode as written. Out: whether this program knows it; the list of all forms, for the tests. Owns: the table.
//! Not here: what a form does (the other files of this folder).
//! Source: PTX ISA 9, the "Syntax" of each instruction, less what is not implemented.
//!
//! A line of the table is an opcode and groups of modifiers. `a|b` is one of them, `?` makes a group optional, `~` marks a
//! group that changes no result here (cache hints, scopes, orderings that in-order execution keeps anyway): it is accepted
//! anywhere behind the opcode, in any number, because assemblers are not strict about it either. Other groups stand in order.

use std::collections::HashMap;
use std::sync::LazyLock;

const INTS: &str = "u16|s16|u32|s32|u64|s64";
const BITS: &str = "b16|b32|b64";
/// Types of loads and stores, of up to 32 bits and of 64.
const NARROW: &str = "b8|b16|b32|u8|u16|u32|s8|s16|s32|f32";
const WIDE: &str = "b64|u64|s64|f64";
/// Spaces of generic memory instructions; none is a generic address.
const SPACES: &str = "global|shared|shared::cta|local|param|param::entry|param::func|const";
const ORDERS: &str = "weak|volatile|relaxed|acquire|release|acq_rel|sc|mmio|cta|cluster|gpu|sys";
const CACHES: &str = "ca|cg|cs|cv|lu|wb|wt|nc|L1::evict_normal|L1::evict_unchanged|L1::evict_first|L1::evict_last|\
                      L1::no_allocate|L2::evict_normal|L2::evict_first|L2::evict_last|L2::cache_hint|L2::64B|L2::128B|L2::256B|\
                      unified";
const ROUND: &str = "rn|rz|rm|rp";
const COMPARE_FLOAT: &str = "eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan";
const FLOATS: &str = "f16|bf16|f32|f64";

/// The table. `{NAME}` stands for a list above.
const TABLE: &[&str] = &[
    // Integer arithmetic.
    "add|sub {INTS}",
    "add|sub sat s32",
    "add u16x2|s16x2",
    "add|sub|addc|subc cc u32|s32|u64|s64",
    "addc|subc u32|s32|u64|s64",
    "mul hi|lo {INTS}",
    "mul wide u16|s16|u32|s32",
    "mad hi|lo {INTS}",
    "mad wide u16|s16|u32|s32",
    "mad hi sat s32",
    "mad|madc hi|lo cc u32|s32|u64|s64",
    "madc hi|lo u32|s32|u64|s64",
    "mul24|mad24 hi|lo u32|s32",
    "mad24 hi sat s32",
    "sad|div|rem {INTS}",
    "min|max {INTS}",
    "min|max u16x2|s16x2",
    "min|max relu s32|s16x2",
    "abs|neg s16|s32|s64",
    "popc|clz|brev b32|b64",
    "bfind shiftamt? u32|s32|u64|s64",
    "fns b32",
    "bfe u32|s32|u64|s64",
    "bfi b32|b64",
    "szext wrap|clamp u32|s32",
    "bmsk wrap|clamp b32",
    "dp4a u32|s32 u32|s32",
    "dp2a lo|hi u32|s32 u32|s32",
    // Logic, shifts, moves, selection.
    "and|or|xor|not pred|{BITS}",
    "cnot|shl {BITS}",
    "shr {BITS}|{INTS}",
    "shf l|r wrap|clamp b32",
    "lop3 b32",
    "prmt b32 f4e|b4e|rc8|ecl|ecr|rc16?",
    "mov pred|b16|b32|b64|u16|u32|u64|s16|s32|s64|f16|f16x2|bf16|bf16x2|f32|f64",
    "selp b16|b32|b64|u16|u32|u64|s16|s32|s64|f16|f16x2|bf16|bf16x2|f32|f64",
    "slct b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64 s32",
    "slct ftz? b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64 f32",
    "setp eq|ne and|or|xor? {BITS}",
    "setp eq|ne|lt|le|gt|ge and|or|xor? {INTS}",
    "setp lo|ls|hi|hs and|or|xor? u16|u32|u64",
    "setp {COMPARE_FLOAT} and|or|xor? f64|bf16|bf16x2",
    "setp {COMPARE_FLOAT} and|or|xor? ftz? f32|f16|f16x2",
    "set eq|ne and|or|xor? u32|s32|f32 {BITS}",
    "set eq|ne|lt|le|gt|ge and|or|xor? u32|s32|f32 {INTS}",
    "set lo|ls|hi|hs and|or|xor? u32|s32|f32 u16|u32|u64",
    "set {COMPARE_FLOAT} and|or|xor? u32|s32|f32 f64",
    "set {COMPARE_FLOAT} and|or|xor? ftz? u32|s32|f32 f32",
    "set {COMPARE_FLOAT} and|or|xor? ftz? f16|u16|s16|u32|s32 f16",
    "set {COMPARE_FLOAT} and|or|xor? bf16|u16|s16|u32|s32 bf16",
    "set {COMPARE_FLOAT} and|or|xor? ftz? f16x2|u32|s32 f16x2",
    "set {COMPARE_FLOAT} and|or|xor? bf16x2|u32|s32 bf16x2",
    // Floating point.
    "add|sub|mul {ROUND}? ftz? sat? f32",
    "fma|mad {ROUND} ftz? sat? f32",
    "add|sub|mul {ROUND}? f64",
    "fma|mad {ROUND} f64",
    "div approx|full|{ROUND} ftz? f32",
    "div {ROUND} f64",
    "rcp|sqrt approx|{ROUND} ftz? f32",
    "rcp|sqrt {ROUND} f64",
    "rcp approx ftz f64",
    "rsqrt approx ftz? f32|f64",
    "sin|cos|lg2|ex2 approx ftz? f32",
    "tanh approx f32|f16|f16x2|bf16|bf16x2",
    "ex2 approx f16|f16x2",
    "ex2 approx ftz bf16|bf16x2",
    "min|max ftz? NaN? f32",
    "min|max ftz? NaN? xorsign abs f32",
    "min|max f64",
    "abs|neg ftz? f32",
    "abs|neg f64",
    "copysign f32|f64",
    "testp finite|infinite|number|notanumber|normal|subnormal f32|f64",
    // Half precision.
    "add|sub|mul rn? ftz? sat? f16|f16x2",
    "add|sub|mul rn? bf16|bf16x2",
    "fma rn ftz? sat|relu? f16|f16x2",
    "fma rn relu? bf16|bf16x2",
    "min|max ftz? NaN? f16|f16x2",
    "min|max ftz? NaN? xorsign abs f16|f16x2",
    "min|max NaN? bf16|bf16x2",
    "min|max NaN? xorsign abs bf16|bf16x2",
    "abs|neg ftz? f16|f16x2",
    "abs|neg bf16|bf16x2",
    // Conversions.
    "cvt sat? u8|s8|u16|s16|u32|s32|u64|s64 u8|s8|u16|s16|u32|s32|u64|s64",
    "cvt rni|rzi|rmi|rpi sat? u8|s8|u16|s16|u32|s32|u64|s64 f16|bf16|f64",
    "cvt rni|rzi|rmi|rpi ftz? sat? u8|s8|u16|s16|u32|s32|u64|s64 f32",
    "cvt {ROUND} sat? {FLOATS} u8|s8|u16|s16|u32|s32|u64|s64",
    "cvt rni|rzi|rmi|rpi? sat? f16 f16",
    "cvt rni|rzi|rmi|rpi? sat? bf16 bf16",
    "cvt rni|rzi|rmi|rpi? sat? f64 f64",
    "cvt rni|rzi|rmi|rpi? ftz? sat? f32 f32",
    "cvt ftz? sat? f32 f16|bf16",
    "cvt sat? f64 f16|bf16",
    "cvt ftz? sat? f64 f32",
    "cvt {ROUND} ftz? sat? f32 f64",
    "cvt {ROUND} ftz? sat? f16 f32",
    "cvt {ROUND} sat? f16|bf16 f64",
    "cvt {ROUND} sat? bf16 f32|f16",
    "cvt {ROUND} sat? f16 bf16",
    "cvt rn|rz relu f16|bf16 f32",
    "cvt rn|rz relu? f16x2|bf16x2 f32",
    "cvt rna tf32 f32",
    "cvt rn|rz relu? tf32 f32",
    "cvt pack sat u16|s16 s32",
    "cvt pack sat u8|s8 s32 b32",
    // Memory.
    "ld {SPACES}? v2|v4? {NARROW} ~{ORDERS} ~{CACHES}",
    "ld {SPACES}? v2? {WIDE} ~{ORDERS} ~{CACHES}",
    "st global|shared|shared::cta|local|param|param::func? v2|v4? {NARROW} ~{ORDERS} ~{CACHES}",
    "st global|shared|shared::cta|local|param|param::func? v2? {WIDE} ~{ORDERS} ~{CACHES}",
    "ldu global? v2|v4? {NARROW}",
    "ldu global? v2? {WIDE}",
    "atom|red global|shared|shared::cta? and|or|xor b32|b64 ~{ORDERS} ~L2::cache_hint",
    "atom|red global|shared|shared::cta? add u32|s32|u64|s64|f32|f64 ~{ORDERS} ~L2::cache_hint",
    "atom|red global|shared|shared::cta? add noftz f16|f16x2|bf16|bf16x2 ~{ORDERS} ~L2::cache_hint",
    "atom|red global|shared|shared::cta? inc|dec u32 ~{ORDERS} ~L2::cache_hint",
    "atom|red global|shared|shared::cta? min|max u32|s32|u64|s64 ~{ORDERS} ~L2::cache_hint",
    "atom global|shared|shared::cta? exch b32|b64 ~{ORDERS} ~L2::cache_hint",
    "atom global|shared|shared::cta? cas b16|b32|b64 ~{ORDERS} ~L2::cache_hint",
    "cvta global|shared|shared::cta|local|const|param u64",
    "cvta to global|shared|shared::cta|local|const|param u64",
    "isspacep global|shared|shared::cta|local|param|param::entry",
    "prefetch ~global|local|const|param|L1|L2|L2::evict_last|L2::evict_normal|tensormap",
    "prefetchu L1",
    "applypriority global L2::evict_normal",
    "discard global L2",
    "createpolicy fractional|range b64 ~global|L2::evict_last|L2::evict_normal|L2::evict_first|L2::evict_unchanged",
    "membar cta|gl|sys",
    "fence ~{ORDERS} ~proxy|alias|async|async::generic|async.global|global|shared::cta|shared::cluster|mbarrier_init|sync_restrict",
    // Asynchronous copies.
    "cp async ca|cg shared|shared::cta global ~L2::cache_hint|L2::64B|L2::128B|L2::256B",
    "cp async commit_group|wait_group|wait_all",
    "cp async bulk shared::cta|shared::cluster global mbarrier::complete_tx::bytes ~L2::cache_hint",
    "cp async bulk global shared::cta bulk_group ~L2::cache_hint",
    "cp async bulk commit_group",
    "cp async bulk wait_group read?",
    "cp async bulk prefetch L2 global ~L2::cache_hint",
    "mbarrier init|inval shared|shared::cta? b64",
    "mbarrier arrive|arrive_drop shared|shared::cta|shared::cluster? b64 ~release|relaxed|cta|cluster",
    "mbarrier arrive|arrive_drop expect_tx shared|shared::cta|shared::cluster? b64 ~release|relaxed|cta|cluster",
    "mbarrier expect_tx|complete_tx shared|shared::cta|shared::cluster? b64 ~relaxed|cta|cluster",
    "mbarrier test_wait|try_wait parity? shared|shared::cta? b64 ~acquire|relaxed|cta|cluster",
    // Tensor cores.
    "mma sync aligned m16n8k8|m16n8k16 row col f32 f16 f16 f32",
    "mma sync aligned m16n8k8|m16n8k16 row col f16 f16 f16 f16",
    "mma sync aligned m16n8k8|m16n8k16 row col f32 bf16 bf16 f32",
    "mma sync aligned m16n8k4|m16n8k8 row col f32 tf32 tf32 f32",
    "mma sync aligned m16n8k16|m16n8k32 row col satfinite? s32 s8|u8 s8|u8 s32",
    "mma sync aligned m16n8k32|m16n8k64 row col satfinite? s32 s4|u4 s4|u4 s32",
    "ldmatrix sync aligned m8n8 x1|x2|x4 trans? shared|shared::cta? b16",
    "stmatrix sync aligned m8n8 x1|x2|x4 trans? shared|shared::cta? b16",
    "movmatrix sync aligned m8n8 trans b16",
    // Warps, blocks, control.
    "bar|barrier cta? sync|arrive ~aligned",
    "bar|barrier cta? red popc u32 ~aligned",
    "bar|barrier cta? red and|or pred ~aligned",
    "bar warp sync",
    "barrier cluster arrive|wait ~release|relaxed|acquire|aligned",
    "shfl sync up|down|bfly|idx b32",
    "vote sync all|any|uni pred",
    "vote sync ballot b32",
    "match any|all sync b32|b64",
    "redux sync add|min|max u32|s32",
    "redux sync and|or|xor b32",
    "activemask b32",
    "elect sync",
    "bra|ret|call uni?",
    "exit",
    "brx idx uni?",
    "trap",
    "brkpt",
    "nanosleep u32",
    "pmevent mask?",
    "griddepcontrol launch_dependents|wait",
    "setmaxnreg inc|dec sync aligned u32",
];

/// One group of modifiers.
struct Group {
    words: Vec<&'static str>,
    optional: bool,
    hint: bool,
}

/// One line of the table.
struct Form {
    groups: Vec<Group>,
}

/// The lines of each opcode.
static FORMS: LazyLock<HashMap<&'static str, Vec<Form>>> = LazyLock::new(|| {
    let mut all: HashMap<&'static str, Vec<Form>> = HashMap::new();
    for line in TABLE {
        let mut parts = line.split(' ');
        let roots = parts.next().unwrap_or("");
        let parts: Vec<&'static str> = parts.collect();
        for root in roots.split('|') {
            all.entry(root).or_default().push(Form { groups: parts.iter().map(|p| group(p)).collect() });
        }
    }
    all
});

fn group(text: &'static str) -> Group {
    let hint = text.starts_with('~');
    let optional = hint || text.ends_with('?');
    let text = text.trim_start_matches('~').trim_end_matches('?');
    let words = text.split('|').flat_map(|word| match word {
        "{INTS}" => INTS.split('|'),
        "{BITS}" => BITS.split('|'),
        "{NARROW}" => NARROW.split('|'),
        "{WIDE}" => WIDE.split('|'),
        "{SPACES}" => SPACES.split('|'),
        "{ORDERS}" => ORDERS.split('|'),
        "{CACHES}" => CACHES.split('|'),
        "{ROUND}" => ROUND.split('|'),
        "{COMPARE_FLOAT}" => COMPARE_FLOAT.split('|'),
        "{FLOATS}" => FLOATS.split('|'),
        word => word.split('|'),
    });
    Group { words: words.collect(), optional, hint }
}

impl Form {
    /// Whether the words fill this form. Each group takes one word, whatever the order; hints take any number.
    fn takes(&self, words: &[&str], used: u64) -> bool {
        let Some((first, rest)) = words.split_first() else {
            return self.groups.iter().enumerate().all(|(n, g)| g.optional || used >> n & 1 != 0);
        };
        self.groups
            .iter()
            .enumerate()
            .any(|(n, g)| g.words.contains(first) && (g.hint || used >> n & 1 == 0) && self.takes(rest, used | 1 << n))
    }
}

/// Refuses an opcode that is not in the table, with the reason.
pub fn check(op: &str) -> Result<(), String> {
    let mut words = op.split('.');
    let root = words.next().unwrap_or("");
    let words: Vec<&str> = words.collect();
    let Some(forms) = FORMS.get(root) else { return Err(format!("unknown opcode `{root}`")) };
    if forms.iter().any(|f| f.takes(&words, 0)) {
        return Ok(());
    }
    let known = |w: &&&str| forms.iter().any(|f| f.groups.iter().any(|g| g.words.contains(*w)));
    Err(match words.iter().find(|w| !known(w)) {
        Some(w) => format!("unknown modifier `.{w}`"),
        None => "these modifiers do not go together here".to_string(),
    })
}

/// The form an opcode has without its hints; `None` when it is not accepted.
pub fn without_hints(op: &str) -> Option<String> {
    let mut words = op.split('.');
    let root = words.next()?;
    let words: Vec<&str> = words.collect();
    let form = FORMS.get(root)?.iter().find(|f| f.takes(&words, 0))?;
    let hint = |w: &&&str| form.groups.iter().any(|g| g.hint && g.words.contains(*w));
    Some(words.iter().filter(|w| !hint(w)).fold(root.to_string(), |op, w| op + "." + w))
}

/// Every form without its hints, each once.
pub fn all() -> Vec<String> {
    let mut out = Vec::new();
    for (root, forms) in &*FORMS {
        for f in forms {
            let mut heads = vec![root.to_string()];
            for g in f.groups.iter().filter(|g| !g.hint) {
                heads = heads
                    .iter()
                    .flat_map(|h| {
                        let with = g.words.iter().map(move |w| format!("{h}.{w}"));
                        g.optional.then(|| h.clone()).into_iter().chain(with)
                    })
                    .collect();
            }
            out.append(&mut heads);
        }
    }
    out.sort();
    out.dedup();
    out
}
