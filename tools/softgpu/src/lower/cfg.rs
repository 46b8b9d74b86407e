//! Control flow of a kernel: basic blocks and where diverged lanes meet.
//! In: successors of each block. Out: immediate post-dominators. Owns: the dominance computation.
//! Not here: building the blocks, liveness (`regs`).
//! Source: Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm" (2001), on the reversed graph.

/// For each block the block where all its paths meet again; `None` when they only meet at the end of the kernel, or never.
pub fn post_dominators(successors: &[Vec<usize>]) -> Vec<Option<usize>> {
    let n = successors.len();
    let exit = n;
    // Edges of the reversed graph start at a virtual exit, which every block without successors leads to.
    let mut predecessors = vec![Vec::new(); n + 1];
    for (b, s) in successors.iter().enumerate() {
        for t in s {
            predecessors[*t].push(b);
        }
        if s.is_empty() {
            predecessors[exit].push(b);
        }
    }
    let mut order = Vec::new();
    let mut seen = vec![false; n + 1];
    walk(exit, &predecessors, &mut seen, &mut order);
    // Blocks that cannot reach the exit (endless loops) hang under it, so that every block has a place.
    for b in (0..n).rev() {
        if !seen[b] {
            predecessors[exit].push(b);
            walk(b, &predecessors, &mut seen, &mut order);
        }
    }
    let exit_at = order.iter().position(|b| *b == exit).unwrap_or(0);
    order.remove(exit_at);
    order.push(exit);
    let mut number = vec![0; n + 1];
    order.iter().enumerate().for_each(|(i, b)| number[*b] = i);
    let mut idom: Vec<Option<usize>> = vec![None; n + 1];
    idom[exit] = Some(exit);
    loop {
        let mut changed = false;
        for b in order.iter().rev().copied().filter(|b| *b != exit) {
            let mut new: Option<usize> = None;
            let ends = successors[b].is_empty() || predecessors[exit].contains(&b);
            for s in successors[b].iter().copied().chain(ends.then_some(exit)) {
                if idom[s].is_none() {
                    continue;
                }
                new = Some(match new {
                    None => s,
                    Some(mut x) => {
                        let mut y = s;
                        while x != y {
                            while number[x] < number[y] {
                                x = idom[x].unwrap_or(exit);
                            }
                            while number[y] < number[x] {
                                y = idom[y].unwrap_or(exit);
                            }
                        }
                        x
                    }
                });
            }
            if new.is_some() && idom[b] != new {
                idom[b] = new;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    (0..n).map(|b| idom[b].filter(|d| *d != exit)).collect()
}

/// Post-order over the reversed graph, without recursion: kernels have thousands of blocks.
fn walk(from: usize, edges: &[Vec<usize>], seen: &mut [bool], order: &mut Vec<usize>) {
    if std::mem::replace(&mut seen[from], true) {
        return;
    }
    let mut stack = vec![(from, 0)];
    while let Some((b, next)) = stack.last_mut() {
        match edges[*b].get(*next) {
            Some(t) => {
                *next += 1;
                let t = *t;
                if !std::mem::replace(&mut seen[t], true) {
                    stack.push((t, 0));
                }
            }
            None => {
                order.push(*b);
                stack.pop();
            }
        }
    }
}
