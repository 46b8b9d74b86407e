//! Warp and block instructions, control flow, asynchronous copies and mbarriers.

use crate::case::{Case, THREADS, noise};
use crate::common::bytes;

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    shuffles(&mut cases);
    collectives(&mut cases);
    barriers(&mut cases);
    control(&mut cases);
    copies(&mut cases);
    mbarriers(&mut cases);
    cases
}

fn shuffles(cases: &mut Vec<Case>) {
    for mode in ["up", "down", "bfly", "idx"] {
        for (b, c) in [(1u32, 31u32), (3, 31), (16, 31), (1, 0), (4, 0x1807), (2, 0x1c03), (31, 0x100f), (5, 0x181f)] {
            let op = format!("shfl.sync.{mode}.b32");
            let data = noise(128);
            let body =
                format!("ld.global.u32 %v, [%me]; {op} %d|%p, %v, {b}, {c}, -1; @%p xor.b32 %d, %d, 0x55555555;");
            cases.push(Case::word(&op, &body, &data.clone(), move |lane| {
                let lane = lane as i32;
                let (bval, cval, seg) = ((b & 31) as i32, (c & 31) as i32, (c >> 8 & 31) as i32);
                let (max, min) = ((lane & seg) | (cval & !seg), lane & seg);
                let (j, p) = match mode {
                    "up" => (lane - bval, lane - bval >= max),
                    "down" => (lane + bval, lane + bval <= max),
                    "bfly" => (lane ^ bval, lane ^ bval <= max),
                    _ => (min | (bval & !seg), (min | (bval & !seg)) <= max),
                };
                data[4 * (if p { j } else { lane }) as usize] ^ if p { 0x5555_5555 } else { 0 }
            }));
        }
    }
}

fn collectives(cases: &mut Vec<Case>) {
    let data: Vec<u32> = noise(128).iter().map(|v| v % 5).collect();
    let lanes: Vec<u32> = (0..32).map(|l| data[4 * l]).collect();
    let mut add = |op: &str, text: &str, want: &dyn Fn(usize) -> u32| {
        let all: Vec<u32> = (0..32).map(want).collect();
        cases.push(Case::word(op, &format!("ld.global.u32 %v, [%me]; {text}"), &data, move |t| all[t]));
    };
    let votes: u32 = lanes.iter().enumerate().map(|(l, v)| (v & 1) << l).sum();
    let odd = "and.b32 %w, %v, 1; setp.ne.u32 %p, %w, 0;";
    add("vote.sync.ballot.b32", &format!("{odd} vote.sync.ballot.b32 %d, %p, -1;"), &|_| votes);
    add("vote.sync.ballot.b32", &format!("{odd} vote.sync.ballot.b32 %d, !%p, -1;"), &|_| !votes);
    for (op, below, want) in
        [("all", 5, 1), ("all", 4, 0), ("any", 1, 1), ("any", 0, 0), ("uni", 5, 1), ("uni", 0, 1), ("uni", 3, 0)]
    {
        let op = format!("vote.sync.{op}.pred");
        add(&op, &format!("setp.lt.u32 %p, %v, {below}; {op} %q, %p, -1; selp.u32 %d, 1, 0, %q;"), &|_| want);
    }
    let same = |l: usize| lanes.iter().enumerate().map(|(o, v)| u32::from(*v == lanes[l]) << o).sum::<u32>();
    add("match.any.sync.b32", "match.any.sync.b32 %d, %v, -1;", &same);
    add("match.any.sync.b64", "cvt.u64.u32 %l0, %v; shl.b64 %l0, %l0, 33; match.any.sync.b64 %d, %l0, -1;", &same);
    for (bits, value) in [("b32", "%v"), ("b64", "%l0")] {
        let op = format!("match.all.sync.{bits}");
        let wide = "cvt.u64.u32 %l0, %v; shl.b64 %l0, %l0, 33;";
        add(&op, &format!("{wide} {op} %d|%p, {value}, -1; @%p add.u32 %d, %d, 7;"), &|_| 0);
        add(&op, &format!("mov.u32 %v, 3; {wide} {op} %d|%p, {value}, -1; @%p sub.u32 %d, %d, 7;"), &|_| u32::MAX - 7);
    }
    let below: Vec<u32> = lanes.iter().map(|v| v.wrapping_sub(2)).collect();
    type Join = fn(u32, u32) -> u32;
    let joins: [(&str, Join); 9] = [
        ("add.u32", u32::wrapping_add),
        ("add.s32", u32::wrapping_add),
        ("min.u32", u32::min),
        ("max.u32", u32::max),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
        ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
    ];
    for (op, join) in joins {
        let op = format!("redux.sync.{op}");
        let want = below.iter().copied().reduce(join).unwrap();
        add(&op, &format!("sub.u32 %v, %v, 2; {op} %d, %v, -1;"), &|_| want);
        // Groups of lanes inside a divergent branch.
        let part = below[..8].iter().copied().reduce(join).unwrap();
        let text =
            format!("sub.u32 %v, %v, 2; mov.u32 %d, 5; setp.ge.u32 %p, %t, 8; @%p bra OUT; {op} %d, %v, 0xff; OUT:");
        add(&op, &text, &|t| if t < 8 { part } else { 5 });
    }
    let inside = |text: &str| format!("mov.u32 %d, 5; setp.ge.u32 %p, %t, 8; @%p bra OUT; {text} OUT:");
    add("activemask.b32", &inside("activemask.b32 %d;"), &|t| if t < 8 { 0xff } else { 5 });
    let elect = inside("elect.sync %d|%q, 0xff; @%q add.u32 %d, %d, 9;");
    add("elect.sync", &elect, &|t| {
        if t == 0 {
            9
        } else if t < 8 {
            0
        } else {
            5
        }
    });
}

fn wide(op: &str, body: &str, threads: u32, want: impl Fn(u32) -> u32) -> Case {
    let out: Vec<u32> = (0..threads).flat_map(|t| [&[want(t)][..], &[0; 15]].concat()).collect();
    let mut case = Case::new(op, format!("{body}\nst.global.u32 [%mine], %d;"), bytes(&noise(4)), bytes(&out));
    case.threads = threads;
    case.module = ".shared .align 16 .b8 s[1024];".into();
    case
}

/// A value goes through shared memory to another warp: without the barrier it is a race, which the checks report.
fn barriers(cases: &mut Vec<Case>) {
    for root in ["bar", "barrier"] {
        for cta in ["", ".cta"] {
            for aligned in if root == "barrier" { &["", ".aligned"][..] } else { &[""] } {
                let sync = format!("{root}{cta}.sync{aligned}");
                let swap = format!(
                    "mov.u32 %s, s; mad.lo.u32 %s, %t, 4, %s; st.shared.u32 [%s], %t; {sync} 0; xor.b32 %v, %t, 32; mov.u32 %s, s; mad.lo.u32 %s, %v, 4, %s; ld.shared.u32 %d, [%s];"
                );
                cases.push(wide(&sync, &swap, 64, |t| t ^ 32));
                // Warp 0 gives and goes on, warp 1 waits and takes.
                let arrive = format!("{root}{cta}.arrive{aligned}");
                let pair = format!(
                    "mov.u32 %d, 9; mov.u32 %s, s; mad.lo.u32 %s, %t, 4, %s; setp.ge.u32 %p, %t, 32; @%p bra TAKE; st.shared.u32 [%s], %t; {arrive} 3, 64; bra DONE; TAKE: {sync} 3, 64; ld.shared.u32 %d, [%s-128]; DONE:"
                );
                cases.push(wide(&arrive, &pair, 64, |t| if t < 32 { 9 } else { t - 32 }));
                let red = |op: &str, ty: &str| format!("{root}{cta}.red.{op}{aligned}.{ty}");
                let popc = red("popc", "u32");
                cases.push(wide(&popc, &format!("setp.lt.u32 %p, %t, 50; {popc} %d, 0, %p;"), 96, |_| 50));
                cases.push(wide(&popc, &format!("setp.lt.u32 %p, %t, 50; {popc} %d, 1, 96, !%p;"), 96, |_| 46));
                for (op, below, want) in [("and", 96, 1), ("and", 95, 0), ("or", 1, 1), ("or", 0, 0)] {
                    let name = red(op, "pred");
                    let text = format!("setp.lt.u32 %p, %t, {below}; {name} %q, 2, %p; selp.u32 %d, 1, 0, %q;");
                    cases.push(wide(&name, &text, 96, move |_| want));
                }
            }
        }
    }
    let swap = "mov.u32 %s, s; mad.lo.u32 %s, %t, 4, %s; st.shared.u32 [%s], %t; bar.warp.sync -1; xor.b32 %v, %t, 1; mov.u32 %s, s; mad.lo.u32 %s, %v, 4, %s; ld.shared.u32 %d, [%s];";
    cases.push(wide("bar.warp.sync", swap, 64, |t| t ^ 1));
    // A cluster of one block: its barrier is the block's.
    let cluster = swap
        .replace("bar.warp.sync -1", "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned")
        .replace("%t, 1;", "%t, 32;");
    let mut case = wide("barrier.cluster.arrive.release.aligned", &cluster, 64, |t| t ^ 32);
    case.about.push("barrier.cluster.wait.acquire.aligned".into());
    cases.push(case);
}

fn control(cases: &mut Vec<Case>) {
    let data = noise(4);
    let mut add = |op: &str, text: &str, want: fn(usize) -> u32| cases.push(Case::word(op, text, &data, want));
    add("bra", "mov.u32 %d, 1; setp.lt.u32 %p, %t, 9; @%p bra L; mov.u32 %d, 2; L: add.u32 %d, %d, 4;", |t| {
        if t < 9 { 5 } else { 6 }
    });
    add("bra.uni", "mov.u32 %d, 1; bra.uni L; mov.u32 %d, 2; L: add.u32 %d, %d, 4;", |_| 5);
    for op in ["brx.idx", "brx.idx.uni"] {
        let index = if op == "brx.idx" { "and.b32 %v, %t, 3;" } else { "mov.u32 %v, 2;" };
        let text = format!(
            "mov.u32 %d, 0; {index} W: .branchtargets A, B, C, C; {op} %v, W; A: mov.u32 %d, 10; bra E; B: mov.u32 %d, 20; bra E; C: mov.u32 %d, 30; E: add.u32 %d, %d, %v;"
        );
        let each: fn(usize) -> u32 = if op == "brx.idx" { |t| [10, 21, 32, 33][t & 3] } else { |_| 32 };
        add(op, &text, each);
    }
    // Half the lanes leave; the others go on.
    for op in ["exit", "ret", "ret.uni"] {
        let text = format!("mov.u32 %d, 0; setp.lt.u32 %p, %t, 9; st.global.u32 [%mine], 3; @%p {op}; mov.u32 %d, 7;");
        add(op, &text, |t| if t < 9 { 3 } else { 7 });
    }
    for op in ["call", "call.uni"] {
        let text = format!(
            "{{ .param .b32 q0; .param .b32 q1; st.param.b32 [q0], %t; {op} (q1), f, (q0); ld.param.b32 %d, [q1]; }}"
        );
        let mut case = Case::word(op, &text, &data, |t| 3 * t as u32 + 1);
        case.module = ".func (.param .b32 r) f(.param .b32 a) { .reg .b32 %x; ld.param.b32 %x, [a]; mad.lo.u32 %x, %x, 3, 1; st.param.b32 [r], %x; ret; }".into();
        cases.push(case);
    }
    // A trap no lane runs does nothing; one that a lane runs is in the tests of faults.
    cases.push(Case::word("trap", "mov.u32 %d, 4; setp.gt.u32 %p, %t, 40; @%p trap;", &data, |_| 4));
}

/// cp.async: bytes land at the wait, the rest of a short copy is zeros.
fn copies(cases: &mut Vec<Case>) {
    let data = noise(128);
    let shared = ".shared .align 16 .b8 s[512];";
    for (op, bytes_each) in [
        ("cp.async.ca.shared.global", 4),
        ("cp.async.ca.shared.global", 8),
        ("cp.async.ca.shared::cta.global", 16),
        ("cp.async.cg.shared.global", 16),
        ("cp.async.cg.shared::cta.global", 16),
        ("cp.async.cg.shared.global.L2::128B", 16),
    ] {
        for given in [bytes_each, 0, 2] {
            for wait in ["cp.async.commit_group; cp.async.wait_group 0;", "cp.async.wait_all;"] {
                let size = if given == bytes_each { String::new() } else { format!(", {given}") };
                let body = format!(
                    "mov.u32 %s, s; mad.lo.u32 %s, %t, 16, %s; mov.u32 %v, 0; st.shared.v4.u32 [%s], {{%v, %v, %v, %v}};\n\
                    {op} [%s], [%me], {bytes_each}{size}; {wait}\n\
                    ld.shared.v4.u32 {{%r0, %r1, %r2, %r3}}, [%s]; st.global.v4.u32 [%mine], {{%r0, %r1, %r2, %r3}};"
                );
                let input = bytes(&data);
                let mut want = Vec::new();
                for t in 0..THREADS as usize {
                    want.extend([&input[16 * t..16 * t + given], &vec![0; 64 - given]].concat());
                }
                let mut case = Case::new(op, body, input, want);
                case.module = shared.into();
                case.about.extend(wait.split("; ").map(|w| w.split([' ', ';']).next().unwrap().to_string()));
                cases.push(case);
            }
        }
    }
    // The older of two groups is there when one may still fly.
    let body = "mov.u32 %s, s; mad.lo.u32 %s, %t, 8, %s; cp.async.ca.shared.global [%s], [%me], 4; cp.async.commit_group;\n\
        cp.async.ca.shared.global [%s+4], [%me+4], 4; cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %d, [%s]; cp.async.wait_group 0; ld.shared.u32 %v, [%s+4]; xor.b32 %d, %d, %v;";
    let want = data.clone();
    let mut case = Case::word("cp.async.wait_group", body, &data, move |t| want[4 * t] ^ want[4 * t + 1]);
    case.module = shared.into();
    cases.push(case);
    // Out of shared memory in one piece.
    let body = "mov.u32 %s, s; mad.lo.u32 %w, %t, 16, %s; ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%me]; st.shared.v4.u32 [%w], {%r0, %r1, %r2, %r3};\n\
        bar.sync 0; fence.proxy.async.shared::cta; setp.ne.u32 %p, %t, 0; @%p bra DONE; cp.async.bulk.prefetch.L2.global [%in], 512; cp.async.bulk.global.shared::cta.bulk_group [%out], [%s], 512; cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; cp.async.bulk.wait_group 0; DONE:";
    let want = [&bytes(&data)[..], &[0; 1536]].concat();
    let mut case = Case::new("cp.async.bulk.global.shared::cta.bulk_group", body.into(), bytes(&data), want);
    case.module = shared.into();
    case.about.extend(
        [
            "cp.async.bulk.commit_group",
            "cp.async.bulk.wait_group.read",
            "cp.async.bulk.wait_group",
            "cp.async.bulk.prefetch.L2.global",
        ]
        .map(String::from),
    );
    cases.push(case);
    for to in ["shared::cluster", "shared::cta"] {
        let op = format!("cp.async.bulk.{to}.global.mbarrier::complete_tx::bytes");
        let body = format!(
            "mov.u32 %s, s; add.u32 %w, %s, 512; setp.ne.u32 %p, %t, 0; @%p bra A; mbarrier.init.shared::cta.b64 [%w], 1; A: bar.sync 0; @%p bra B;\n\
            mbarrier.arrive.expect_tx.shared::cta.b64 %l0, [%w], 512; {op} [%s], [%in], 512, [%w];\n\
            B: mbarrier.try_wait.parity.shared::cta.b64 %q, [%w], 0; @!%q bra B; mad.lo.u32 %s, %t, 16, %s; ld.shared.u32 %d, [%s+4];"
        );
        let want = data.clone();
        let mut case = Case::word(&op, &body, &data, move |t| want[4 * t + 1]);
        case.module = ".shared .align 16 .b8 s[1024];".into();
        cases.push(case);
    }
}

/// mbarrier: phases complete when all arrivals and bytes are there. Results are collected as bits.
fn mbarriers(cases: &mut Vec<Case>) {
    for space in ["", ".shared", ".shared::cta"] {
        // A generic address or one of shared memory.
        let at = if space.is_empty() { "%x" } else { "%s" };
        let address = "mov.u32 %s, s; cvt.u64.u32 %x, %s; cvta.shared.u64 %x, %x;";
        let mut one = |ops: &[String], text: String, want: u32| {
            // One thread does it all; the others only write their zeros.
            let body = format!("{address} mov.u32 %d, 0; setp.ne.u32 %p, %t, 0; @%p bra DONE;\n{text}\nDONE:");
            let mut case = Case::word(&ops[0], &body, &noise(4), move |t| if t == 0 { want } else { 0 });
            case.about = ops.to_vec();
            case.module = ".shared .align 16 .b8 s[1024];".into();
            cases.push(case);
        };
        let op = |name: &str| format!("mbarrier.{name}{space}.b64");
        let (init, arrive, test, try_wait) = (op("init"), op("arrive"), op("test_wait"), op("try_wait"));
        let (parity, try_parity) = (op("test_wait.parity"), op("try_wait.parity"));
        // Two arrivals complete a phase; the state of before tells.
        for waiting in [&test, &try_wait] {
            let text = format!(
                "{init} [{at}], 2; {arrive} %l0, [{at}]; {test} %q, [{at}], %l0; @%q or.b32 %d, %d, 1; {arrive} %l1, [{at}]; {waiting} %q, [{at}], %l0; @%q or.b32 %d, %d, 2;"
            );
            one(&[waiting.clone(), init.clone(), arrive.clone()], text, 2);
        }
        // Phases alternate: after one phase parity 0 is complete and parity 1 is not.
        for waiting in [&parity, &try_parity] {
            let text = format!(
                "{init} [{at}], 1; {arrive} %l0, [{at}]; {waiting} %q, [{at}], 0; @%q or.b32 %d, %d, 1; {parity} %q, [{at}], 1; @%q or.b32 %d, %d, 2; {arrive} %l0, [{at}]; {waiting} %q, [{at}], 1; @%q or.b32 %d, %d, 4;"
            );
            one(std::slice::from_ref(waiting), text, 5);
        }
        // An arrival of several at once.
        let text = format!("{init} [{at}], 5; {arrive} %l0, [{at}], 5; {parity} %q, [{at}], 0; @%q or.b32 %d, %d, 1;");
        one(std::slice::from_ref(&arrive), text, 1);
        // After a drop the next phase needs one less.
        let drop = op("arrive_drop");
        let text = format!(
            "{init} [{at}], 2; {arrive} %l0, [{at}]; {drop} %l1, [{at}]; {parity} %q, [{at}], 0; @%q or.b32 %d, %d, 1; {arrive} %l0, [{at}]; {parity} %q, [{at}], 1; @%q or.b32 %d, %d, 2;"
        );
        one(&[drop], text, 3);
        let (expect, complete) = (op("expect_tx"), op("complete_tx"));
        let text = format!(
            "{init} [{at}], 1; {expect} [{at}], 64; {arrive} %l0, [{at}]; {parity} %q, [{at}], 0; @%q or.b32 %d, %d, 1; {complete} [{at}], 64; {parity} %q, [{at}], 0; @%q or.b32 %d, %d, 2;"
        );
        one(&[expect.clone(), complete.clone()], text, 2);
        for (name, next) in [("arrive.expect_tx", 0), ("arrive_drop.expect_tx", 1)] {
            let both = op(name);
            // With the drop the phase that follows has nothing to wait for but its count of one less.
            let text = format!(
                "{init} [{at}], {}; {both} %l0, [{at}], 32; {parity} %q, [{at}], 0; @%q or.b32 %d, %d, 1; {complete} [{at}], 32; {parity} %q, [{at}], 0; @%q or.b32 %d, %d, 2;",
                1 + next
            );
            // A count of two and one dropped arrival: still one missing.
            one(&[both], text, if next == 0 { 2 } else { 0 });
        }
        let inval = op("inval");
        let text = format!(
            "{init} [{at}], 3; {inval} [{at}]; {init} [{at}], 1; {arrive} %l0, [{at}]; {parity} %q, [{at}], 0; @%q or.b32 %d, %d, 1;"
        );
        one(&[inval], text, 1);
    }
    // Of a cluster's shared memory, which is the block's own.
    for (name, operands) in [
        ("arrive", "_, [%s];"),
        ("arrive_drop", "_, [%s];"),
        ("arrive.expect_tx", "_, [%s], 0;"),
        ("arrive_drop.expect_tx", "_, [%s], 0;"),
    ] {
        let op = format!("mbarrier.{name}.shared::cluster.b64");
        let body = format!(
            "mov.u32 %s, s; mov.u32 %d, 0; setp.ne.u32 %p, %t, 0; @%p bra DONE; mbarrier.init.shared.b64 [%s], 1; {op} {operands} mbarrier.test_wait.parity.shared.b64 %q, [%s], 0; @%q mov.u32 %d, 1; DONE:"
        );
        let mut case = Case::word(&op, &body, &noise(4), |t| u32::from(t == 0));
        case.module = ".shared .align 16 .b8 s[1024];".into();
        cases.push(case);
    }
    let (expect, complete) =
        ("mbarrier.expect_tx.relaxed.cta.shared::cluster.b64", "mbarrier.complete_tx.shared::cluster.b64");
    let body = format!(
        "mov.u32 %s, s; mov.u32 %d, 0; setp.ne.u32 %p, %t, 0; @%p bra DONE; mbarrier.init.shared.b64 [%s], 1; {expect} [%s], 8; mbarrier.arrive.shared.b64 %l0, [%s]; {complete} [%s], 8; mbarrier.test_wait.parity.shared.b64 %q, [%s], 0; @%q mov.u32 %d, 1; DONE:"
    );
    let mut case = Case::word(expect, &body, &noise(4), |t| u32::from(t == 0));
    case.about.push(complete.into());
    case.module = ".shared .align 16 .b8 s[1024];".into();
    cases.push(case);
}
