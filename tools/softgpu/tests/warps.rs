//! Warp collectives, atomics, memory forms, mbarriers, and every counter on kernels whose counts are known by hand.

mod common;
use common::{Random, bytes, run_instruction, words};
use softgpu::counters::LaunchCounts;
use softgpu::exec::fault::Fault;
use softgpu::gpu::{Gpu, Shape};
use softgpu::ir::Class;

/// Runs a body with `%t` = tid, `%x` = buffer (in and out), `%n` = its second parameter; counters on.
fn run(body: &str, threads: u32, blocks: u32, data: &[u32]) -> Result<(Vec<u32>, LaunchCounts), Box<Fault>> {
    let ptx = format!(
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k(.param .u64 p0)\n{{\n.reg .b32 %t, %b, %v, %w, %z, %r<16>; .reg .pred %p, %q; .reg .b64 %x, %y, %o, %l<8>; .reg .b16 %h<4>;\n\
        .shared .align 128 .b8 s[16384];\nmov.u32 %t, %tid.x; mov.u32 %b, %ctaid.x; ld.param.u64 %x, [p0]; mul.wide.u32 %o, %t, 4; add.u64 %y, %x, %o;\n{body}\nret;\n}}\n"
    );
    let mut gpu = Gpu::new(1 << 24).unwrap();
    gpu.options.count = true;
    let m = gpu.load(&ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
    let x = gpu.upload(&bytes(data)).unwrap();
    let c = gpu.launch(
        &m.kernels["k"],
        Shape { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 0 },
        &[&x.to_le_bytes()],
    )?;
    Ok((words(&gpu.download(x, data.len() * 4)), c))
}

fn noise(n: usize) -> Vec<u32> {
    let mut r = Random(9);
    (0..n).map(|_| r.bits() as u32).collect()
}

#[test]
fn shuffles_as_the_isa_computes_them() {
    for mode in ["up", "down", "bfly", "idx"] {
        for (b, c) in [(1u32, 31u32), (3, 31), (16, 31), (1, 0), (4, 0x1807), (2, 0x1c03), (31, 0x100f), (5, 0x181f)] {
            let body = format!(
                "ld.global.u32 %v, [%y]; shfl.sync.{mode}.b32 %w|%p, %v, {b}, {c}, -1; selp.u32 %z, 1, 0, %p; st.global.u32 [%y], %w; st.global.u32 [%y+128], %z;"
            );
            let data = noise(64);
            let (out, _) = run(&body, 32, 1, &data).unwrap();
            for lane in 0..32i32 {
                let (bval, cval, seg) = ((b & 31) as i32, (c & 31) as i32, (c >> 8 & 31) as i32);
                let (max, min) = ((lane & seg) | (cval & !seg), lane & seg);
                let (j, p) = match mode {
                    "up" => (lane - bval, lane - bval >= max),
                    "down" => (lane + bval, lane + bval <= max),
                    "bfly" => (lane ^ bval, lane ^ bval <= max),
                    _ => (min | (bval & !seg), (min | (bval & !seg)) <= max),
                };
                let j = if p { j } else { lane };
                assert_eq!(
                    (out[lane as usize], out[lane as usize + 32]),
                    (data[j as usize], u32::from(p)),
                    "{mode} {b} {c:#x} lane {lane}"
                );
            }
        }
    }
}

#[test]
fn votes_matches_and_reductions() {
    let data: Vec<u32> = noise(32).iter().map(|v| v % 5).collect();
    let go =
        |text: &str| run(&format!("ld.global.u32 %v, [%y]; {text} st.global.u32 [%y], %w;"), 32, 1, &data).unwrap().0;
    let odd = data.iter().enumerate().map(|(i, v)| (v & 1) << i).sum::<u32>();
    assert_eq!(go("and.b32 %w, %v, 1; setp.ne.u32 %p, %w, 0; vote.sync.ballot.b32 %w, %p, -1;"), vec![odd; 32]);
    assert_eq!(go("and.b32 %w, %v, 1; setp.ne.u32 %p, %w, 0; vote.sync.ballot.b32 %w, !%p, -1;"), vec![!odd; 32]);
    for (op, want) in [("all", 0), ("any", 1), ("uni", 0)] {
        assert_eq!(
            go(&format!("setp.eq.u32 %p, %v, 3; vote.sync.{op}.pred %q, %p, -1; selp.u32 %w, 1, 0, %q;")),
            vec![want; 32],
            "{op}"
        );
    }
    assert_eq!(go("setp.lt.u32 %p, %v, 5; vote.sync.all.pred %q, %p, -1; selp.u32 %w, 1, 0, %q;"), vec![1; 32]);
    let same: Vec<u32> =
        data.iter().map(|v| data.iter().enumerate().map(|(i, u)| u32::from(u == v) << i).sum()).collect();
    assert_eq!(go("match.any.sync.b32 %w, %v, -1;"), same);
    assert_eq!(go("cvt.u64.u32 %l0, %v; match.any.sync.b64 %w, %l0, -1;"), same);
    assert_eq!(go("match.all.sync.b32 %w|%p, 7, -1; @!%p mov.u32 %w, 5;"), vec![u32::MAX; 32]);
    assert_eq!(go("match.all.sync.b32 %w|%p, %v, -1; @!%p add.u32 %w, %w, 5;"), vec![5; 32]);
    let reduced = |f: fn(u32, u32) -> u32| data.iter().copied().map(|v| v.wrapping_sub(2)).reduce(f).unwrap();
    for (op, want) in [
        ("add.u32", reduced(u32::wrapping_add)),
        ("min.u32", reduced(u32::min)),
        ("max.u32", reduced(u32::max)),
        ("min.s32", reduced(|a, b| (a as i32).min(b as i32) as u32)),
        ("max.s32", reduced(|a, b| (a as i32).max(b as i32) as u32)),
        ("and.b32", reduced(|a, b| a & b)),
        ("or.b32", reduced(|a, b| a | b)),
        ("xor.b32", reduced(|a, b| a ^ b)),
    ] {
        assert_eq!(go(&format!("sub.u32 %v, %v, 2; redux.sync.{op} %w, %v, -1;")), vec![want; 32], "{op}");
    }
    // Inside a divergent branch only those lanes count.
    let low = go(
        "mov.u32 %w, 0; setp.ge.u32 %p, %t, 8; @%p bra OUT; activemask.b32 %w; elect.sync %r0|%q, 0xff; @%q add.u32 %w, %w, 1; OUT:",
    );
    assert_eq!(low[0], 0x100);
    assert_eq!((&low[1..8], &low[8..]), (&[0xff; 7][..], &[0; 24][..]));
}

#[test]
fn block_barriers_reduce_and_named_barriers_pair() {
    let body = "setp.lt.u32 %p, %t, 50; bar.red.popc.u32 %v, 0, %p; bar.red.and.pred %q, 0, %p; selp.u32 %w, 100, 0, %q; add.u32 %v, %v, %w;\
        bar.red.or.pred %q, 1, 96, !%p; selp.u32 %w, 1000, 0, %q; add.u32 %v, %v, %w; st.global.u32 [%y], %v;";
    assert_eq!(run(body, 96, 1, &[0; 96]).unwrap().0, vec![1050; 96]);
    // Warp 0 produces and arrives; warp 1 waits: ordered, so no race.
    let pair = "mov.u32 %v, s; mad.lo.u32 %v, %t, 4, %v; setp.ge.u32 %p, %t, 32; @%p bra CONSUME; st.shared.u32 [%v], %t; bar.arrive 3, 64; bra DONE;\
        CONSUME: bar.sync 3, 64; ld.shared.u32 %w, [%v-128]; st.global.u32 [%y], %w; DONE:";
    let (out, _) = run(pair, 64, 1, &[9; 64]).unwrap();
    assert_eq!((out[31], out[32], out[63]), (9, 0, 31));
    // The same without the barrier is a race.
    let e = run(&pair.replace("bar.arrive 3, 64;", "").replace("bar.sync 3, 64;", ""), 64, 1, &[9; 64]).unwrap_err();
    assert_eq!(e.kind.name(), "shared-memory race");
}

#[test]
fn atomics_by_definition() {
    type Op = fn(u32, u32) -> u32;
    let ops: [(&str, Op); 12] = [
        ("add.u32", u32::wrapping_add),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
        ("exch.b32", |_, b| b),
        ("min.u32", u32::min),
        ("max.u32", u32::max),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
        ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
        ("inc.u32", |a, b| if a >= b { 0 } else { a + 1 }),
        ("dec.u32", |a, b| if a == 0 || a > b { b } else { a - 1 }),
        ("add.f32", |a, b| (f32::from_bits(a) + f32::from_bits(b)).to_bits()),
    ];
    for (op, f) in ops {
        for space in ["global", "shared"] {
            let mut data = noise(33);
            if op == "add.f32" {
                data = data.iter().map(|v| (*v as f32 / 1e9).to_bits()).collect();
            }
            let init = "mov.u32 %z, s; ld.global.u32 %w, [%x+128]; st.shared.u32 [%z], %w; bar.sync 0;";
            let at = if space == "global" { "[%x+128]" } else { "[%z]" };
            let end =
                if space == "shared" { "bar.sync 0; ld.shared.u32 %w, [%z]; st.global.u32 [%x+128], %w;" } else { "" };
            let body = format!(
                "ld.global.u32 %v, [%y]; {init} bar.sync 0; atom.{space}.{op} %r0, {at}, %v; st.global.u32 [%y], %r0; {end}"
            );
            let (out, _) = run(&body, 32, 1, &data).unwrap_or_else(|e| panic!("{op} {space}: {e}"));
            // Lanes take their turns in order.
            let mut m = data[32];
            for l in 0..32 {
                assert_eq!(out[l], m, "{op} {space} lane {l}");
                m = f(m, data[l]);
            }
            assert_eq!(out[32], m, "{op} {space}");
        }
    }
    // 64 bits, compare-and-swap, halves, and the form without a result; sums of many blocks on several threads.
    let (out, _) = run("mov.u64 %l0, 0x100000001; red.global.add.u64 [%x], %l0; atom.global.cas.b32 %r0, [%x+8], 5, 6; red.global.add.noftz.f16x2 [%x+12], 0x3c003c00;", 32, 20, &[0, 0, 5, 0]).unwrap();
    assert_eq!(out[..3], [640, 640, 6]);
    assert_eq!(out[3], 0x6100_6100, "640 as f16, twice");
    let (out, _) = run("and.b32 %v, %t, 1; mad.wide.u32 %l0, %v, 2, %x; mov.u16 %h0, 0x3f80; atom.global.add.noftz.bf16 %h1, [%l0], %h0;", 32, 1, &[0]).unwrap();
    assert_eq!(out[0], 0x4180_4180, "16 as bf16 in each half");
}

#[test]
fn loads_and_stores_of_every_width_and_space() {
    // Extension by type into wider registers.
    for (ty, bits, signed) in [
        ("u8", 8, false),
        ("s8", 8, true),
        ("u16", 16, false),
        ("s16", 16, true),
        ("u32", 32, false),
        ("s32", 32, true),
    ] {
        let v = noise(64);
        let wide = bits == 32;
        let reg = if wide { "%l0" } else { "%w" };
        let store = if wide {
            "mul.wide.u32 %o, %t, 8; add.u64 %l1, %x, %o; st.global.u64 [%l1+128], %l0;"
        } else {
            "st.global.u32 [%y+128], %w;"
        };
        let mut data = v[..32].to_vec();
        data.resize(128, 0);
        let (out, _) = run(&format!("ld.global.{ty} {reg}, [%y]; {store}"), 32, 1, &data).unwrap();
        for l in 0..32 {
            let raw = u64::from(data[l]) & ((1 << bits) - 1);
            let want = if signed { ((raw << (64 - bits)) as i64 >> (64 - bits)) as u64 } else { raw };
            if wide {
                assert_eq!(u64::from(out[32 + 2 * l]) | u64::from(out[33 + 2 * l]) << 32, want, "{ty}");
            } else {
                assert_eq!(out[32 + l], want as u32, "{ty}");
            }
        }
    }
    // Vectors through global, shared and generic addresses; local memory; constant parameters by address.
    let body = "mul.wide.u32 %o, %t, 16; add.u64 %l0, %x, %o; ld.global.nc.L1::no_allocate.v4.u32 {%r0, %r1, %r2, %r3}, [%l0];\
        mov.u32 %v, s; mad.lo.u32 %v, %t, 16, %v; st.shared.v2.u32 [%v], {%r3, %r2}; st.shared.v2.u32 [%v+8], {%r1, %r0};\
        cvt.u64.u32 %l1, %v; cvta.shared.u64 %l1, %l1; ld.v4.u32 {%r4, %r5, %r6, %r7}, [%l1]; isspacep.shared %p, %l1; @!%p trap;\
        { .local .align 8 .b8 depot[16]; .reg .b64 %q0; mov.u64 %q0, depot; st.local.u32 [%q0], %r4; st.local.u32 [%q0+4], %r5; ld.local.u64 %l2, [%q0]; cvta.local.u64 %q0, %q0; ld.u32 %r8, [%q0+4]; isspacep.local %p, %q0; @!%p trap; }\
        mov.b64 {%r9, %r10}, %l2; add.u32 %r10, %r10, %r8; st.global.v4.u32 [%l0], {%r9, %r10, %r6, %r7};";
    let data = noise(128);
    let (out, _) = run(body, 32, 1, &data).unwrap();
    for l in 0..32 {
        let d = &data[4 * l..];
        assert_eq!(out[4 * l..4 * l + 4], [d[3], d[2].wrapping_mul(2), d[1], d[0]]);
    }
    assert_eq!(
        run_instruction("{ .reg .b32 %i; mov.u32 %i, %laneid; cvt.u64.u32 %d, %i; }", &[("u64", vec![0; 64])], "u64")
            [37],
        5
    );
}

#[test]
fn mbarriers_order_bulk_copies() {
    let body = "mov.u32 %v, s; add.u32 %w, %v, 8192; setp.ne.u32 %p, %t, 0; @%p bra WAIT0; mbarrier.init.shared::cta.b64 [%w], 1; WAIT0: bar.sync 0; @%p bra WAIT;\
        mbarrier.arrive.expect_tx.shared::cta.b64 %l0, [%w], 256; cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%v], [%x], 256, [%w];\
        WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%w], 0; @!%q bra WAIT; LOADED: mad.lo.u32 %v, %t, 4, %v; ld.shared.u32 %z, [%v]; add.u32 %z, %z, 1; st.global.u32 [%y], %z;";
    let data = noise(64);
    let (out, _) = run(body, 64, 1, &data).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(out, data.iter().map(|v| v.wrapping_add(1)).collect::<Vec<_>>());
    let e = run(&body.replace("@!%q bra WAIT;", ""), 64, 1, &data).map(|_| ());
    // Thread 0 may see the phase complete at once; without waiting in a loop the others may not.
    assert!(e.is_ok() || e.is_err_and(|e| e.kind.name() == "missing cp.async wait"));
    let e = run(
        &body
            .replace("WAIT: mbarrier.try_wait.parity.shared::cta.b64 %q, [%w], 0; @!%q bra WAIT;", "WAIT: bar.sync 0;"),
        64,
        1,
        &data,
    )
    .unwrap_err();
    assert_eq!(e.kind.name(), "missing cp.async wait");
    // A phase no one completes is reported, not waited for.
    let e = run(
        &body.replace(
            "mbarrier.arrive.expect_tx.shared::cta.b64 %l0, [%w], 256;",
            "mbarrier.arrive.expect_tx.shared::cta.b64 %l0, [%w], 512;",
        ),
        64,
        1,
        &data,
    )
    .unwrap_err();
    assert_eq!(e.kind.name(), "no progress");
}

#[test]
fn counters_match_hand_counts() {
    let at = |c: &LaunchCounts, class: Class, f: fn(&softgpu::counters::PcCount) -> u64| c.of(class, f);
    // Coalesced: 128 bytes a warp are 4 sectors. Two blocks read the same data: 4 sectors are new once.
    let (_, c) = run("ld.global.u32 %v, [%y];", 32, 2, &noise(32)).unwrap();
    assert_eq!(
        (at(&c, Class::GlobalLoad, |x| x.requests), at(&c, Class::GlobalLoad, |x| x.sectors), c.sum(|x| x.unique_read)),
        (2, 8, 4)
    );
    // Stride of 32 bytes: 32 sectors where the bytes would fit 4.
    let (_, c) =
        run("mul.wide.u32 %o, %t, 32; add.u64 %y, %x, %o; ld.global.u32 %v, [%y];", 32, 1, &noise(256)).unwrap();
    assert_eq!((c.sum(|x| x.sectors), c.sum(|x| x.sectors_min)), (32, 4));
    // One address for all lanes: one sector.
    let (_, c) = run("ld.global.u32 %v, [%x];", 32, 1, &noise(32)).unwrap();
    assert_eq!((c.sum(|x| x.sectors), c.sum(|x| x.sectors_min)), (1, 1));
    // 16 bytes a lane, off by one sector's half: 17 sectors against 16.
    let (_, c) = run(
        "mul.wide.u32 %o, %t, 16; add.u64 %y, %x, %o; st.global.v4.u32 [%y+16], {%t, %t, %t, %t};",
        32,
        1,
        &noise(140),
    )
    .unwrap();
    assert_eq!(
        (
            at(&c, Class::GlobalStore, |x| x.sectors),
            at(&c, Class::GlobalStore, |x| x.sectors_min),
            c.sum(|x| x.unique_written)
        ),
        (17, 16, 17)
    );
    // Bank conflicts: stride 2 words is 2 passes, stride 32 words is 32, a row of words is 1.
    for (stride, passes) in [(4, 1), (8, 2), (128, 32)] {
        let (_, c) =
            run(&format!("mov.u32 %v, s; mad.lo.u32 %v, %t, {stride}, %v; st.shared.u32 [%v], %t;"), 32, 1, &[0])
                .unwrap();
        assert_eq!((c.sum(|x| x.wavefronts), c.sum(|x| x.wavefronts_min)), (passes, 1), "stride {stride}");
    }
    // Classes, barriers, atomics, lanes. Two warps; half the lanes of each take the branch.
    let body = "bar.sync 0; bar.sync 0; add.u32 %v, %t, 1; and.b32 %v, %t, 1; setp.eq.u32 %p, %v, 0; @%p bra SKIP; add.u32 %w, %t, 2; atom.global.add.u32 %z, [%x], 1; SKIP:";
    let (out, c) = run(body, 64, 3, &[0]).unwrap();
    assert_eq!(out[0], 96);
    assert_eq!(
        (at(&c, Class::Barrier, |x| x.issued), c.sum(|x| x.atomics), at(&c, Class::Atomic, |x| x.issued)),
        (12, 96, 6)
    );
    // Per warp: mov, mov, ld.param, mul, add, 2 bar, add, and, setp, bra (16 of 32 lanes), add and atom (16), ret.
    assert_eq!(c.issued(), 6 * 14);
    assert_eq!(c.sum(|x| x.lanes), 6 * (11 * 32 + 3 * 16));
    assert_eq!(at(&c, Class::ConstantLoad, |x| x.issued), 6);
    // A loop of ten steps is ten issues of its body.
    let (_, c) = run(
        "mov.u32 %v, 0; LOOP: fma.rn.f32 %w, %w, %w, %w; add.u32 %v, %v, 1; setp.lt.u32 %p, %v, 10; @%p bra LOOP;",
        32,
        1,
        &[0],
    )
    .unwrap();
    assert_eq!(at(&c, Class::Float32, |x| x.issued), 10);
    // Counts do not depend on threads or order.
    assert_eq!(run(body, 64, 3, &[0]).unwrap().1.issued(), 6 * 14);
}

#[test]
fn divergence_reconverges() {
    // Nested branches and a loop with a trip count a lane: every lane gets its own result, and all meet before the end.
    let body = "mov.u32 %v, 0; mov.u32 %w, 0; LOOP: setp.ge.u32 %p, %w, %t; @%p bra OUT; and.b32 %z, %w, 3; setp.eq.u32 %p, %z, 1; @%p bra ODD; setp.eq.u32 %p, %z, 2; @%p bra TWO; add.u32 %v, %v, 1; bra NEXT;\
        TWO: add.u32 %v, %v, 10; bra NEXT; ODD: add.u32 %v, %v, 100; NEXT: add.u32 %w, %w, 1; bra LOOP; OUT: activemask.b32 %r0; add.u32 %r0, %r0, 1; add.u32 %v, %v, %r0; st.global.u32 [%y], %v;";
    let (out, _) = run(body, 32, 1, &[0; 32]).unwrap();
    for t in 0..32u32 {
        let want: u32 = (0..t).map(|w| [1, 100, 10, 1][(w & 3) as usize]).sum();
        assert_eq!(out[t as usize], want, "thread {t}");
    }
    // Early exits, and a table of branch targets.
    let body = "setp.gt.u32 %p, %t, 20; @%p exit; and.b32 %z, %t, 3; TABLE: .branchtargets A, B, C, A;\nbrx.idx %z, TABLE; A: mov.u32 %v, 1; bra END; B: mov.u32 %v, 2; bra END; C: mov.u32 %v, 3; END: st.global.u32 [%y], %v;";
    let (out, _) = run(body, 32, 1, &[7; 32]).unwrap();
    for t in 0..32usize {
        assert_eq!(out[t], if t > 20 { 7 } else { [1, 2, 3, 1][t & 3] });
    }
}

#[test]
fn faults_that_end_a_launch_have_their_kind_and_line() {
    // The body is line 9 of the text.
    let all = [
        ("trap;", "trap", 719),
        ("setp.gt.u32 %p, %t, 30; @%p trap;", "trap", 719),
        ("ld.global.u32 %v, [%x+2];", "misaligned access", 716),
        ("ld.global.u32 %v, [%y+128];", "out-of-bounds access", 700),
        ("mov.u64 %l0, 16; st.global.u32 [%l0], %t;", "out-of-bounds access", 700),
        ("ld.shared.u32 %v, [s+16384];", "out-of-bounds access", 700),
        ("st.shared.v2.u32 [s+4], {%t, %t};", "misaligned access", 716),
        ("ld.shared.u32 %v, [s];", "read of uninitialised memory", 719),
        ("st.shared.u32 [s], %t;", "shared-memory race", 719),
        ("{ .local .align 4 .b8 d[8]; mov.u64 %l0, d; ld.local.u32 %v, [%l0+8]; }", "out-of-bounds access", 700),
        ("ld.param.u64 %l0, [p0+8];", "out-of-bounds access", 700),
        ("setp.lt.u32 %p, %t, 4; @%p shfl.sync.idx.b32 %v, %t, 0, 31, -1;", "warp-level sync with absent lanes", 719),
        ("setp.lt.u32 %p, %t, 4; @%p bar.sync 0;", "barrier divergence", 719),
        (
            "cp.async.ca.shared.global [s], [%x], 4; ld.shared.u32 %v, [s];",
            "shared-memory race, missing cp.async wait",
            719,
        ),
        ("mov.u32 %v, 9; TABLE: .branchtargets A, A; brx.idx %v, TABLE; A: ", "illegal operand", 715),
        ("mov.u32 %v, s; mbarrier.arrive.shared.b64 %l0, [%v];", "read of uninitialised memory", 719),
        (
            "mov.u32 %v, s; mbarrier.init.shared.b64 [%v], 1; WAIT: mbarrier.try_wait.parity.shared.b64 %q, [%v], 0; @!%q bra WAIT;",
            "no progress",
            702,
        ),
    ];
    for (body, kinds, code) in all {
        let Err(e) = run(body, 32, 1, &[0; 32]) else { panic!("{body}: nothing was found") };
        assert!(kinds.split(", ").any(|k| k == e.kind.name()), "{body}: {e}");
        assert_eq!(e.kind.cuda_error(), code, "{body}");
        let text = e.to_string();
        assert!(e.ptx_line == 9 && text.contains("PTX line 9"), "{body}: {text}");
    }
    // A loop without end.
    let mut gpu = Gpu::new(1 << 22).unwrap();
    gpu.options.max_steps = 1 << 18;
    let m = gpu.load(".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{\nL: bra L;\n}\n").unwrap();
    let e = gpu.launch(&m.kernels["k"], Shape { grid: [1; 3], block: [32, 1, 1], shared: 0 }, &[]).unwrap_err();
    assert_eq!((e.kind.name(), e.kind.cuda_error()), ("no progress", 702));
}
