//! Small pieces on their own: literals, grammar, dominators, memory, printf, banks, block order.

mod memory_tests {
    use softgpu::memory::*;

    #[test]
    fn capacity_double_free_and_bounds() {
        let mut m = Memory::new(1 << 20).unwrap();
        let a = m.alloc(1000, Use::Device).unwrap();
        assert_eq!(m.info().0, (1 << 20) - 1024);
        assert_eq!(m.alloc(1 << 20, Use::Device), Err(MemoryError::OutOfMemory));
        assert!(m.contains(a, 1000) && !m.contains(a, 1001) && !m.contains(a + 999, 2));
        assert!(m.write(a, &[7; 1000]).is_some() && m.write(a + 1, &[7; 1000]).is_none());
        m.free(a).unwrap();
        assert_eq!(m.free(a), Err(MemoryError::DoubleFree));
        assert_eq!(m.free(a + 8), Err(MemoryError::NotAllocated));
        assert_eq!(m.info().0, 1 << 20);
    }

    #[test]
    fn shadow_follows_writes_and_copies() {
        let mut m = Memory::new(1 << 20).unwrap();
        let a = m.alloc(64, Use::Device).unwrap();
        let b = m.alloc(64, Use::Device).unwrap();
        m.write(a, &[1; 40]).unwrap();
        let ends = |m: &mut Memory| m.view(false).regions.iter().map(|r| r.init_end - r.start).collect::<Vec<_>>();
        assert_eq!(ends(&mut m), [40, 0]);
        m.copy_shadow(b, a, 64);
        assert_eq!(ends(&mut m), [40, 40]);
        m.mark_initialised(b, 64);
        assert_eq!(ends(&mut m), [40, 64]);
        m.copy_shadow(b, a, 64);
        assert_eq!(ends(&mut m), [40, 40]);
    }
}

mod grid_tests {
    use softgpu::exec::grid::permute;

    #[test]
    fn shuffled_order_is_a_permutation() {
        for n in [1u64, 2, 7, 64, 1000] {
            let mut seen: Vec<u64> = (0..n).map(|i| permute(i, n, 42)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>());
        }
        assert_ne!((0..100).map(|i| permute(i, 100, 1)).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }
}

mod text_tests {
    use softgpu::exec::text::conversion;

    #[test]
    fn conversions_as_c_prints_them() {
        let f = |flags, kind, v: f64| conversion(flags, kind, v.to_bits(), true, "");
        assert_eq!(f(".3", 'f', 1.5), "1.500");
        assert_eq!(f("8.2", 'f', -1.5), "   -1.50");
        assert_eq!(f("08.2", 'f', -1.5), "-0001.50");
        assert_eq!(f("", 'e', 12345.678), "1.234568e+04");
        assert_eq!(f("", 'g', 0.0001), "0.0001");
        assert_eq!(f("", 'g', 1e-5), "1e-05");
        assert_eq!(f("", 'g', 123456789.0), "1.23457e+08");
        assert_eq!(conversion("-6", 'd', (-3i64) as u64, true, ""), "-3    ");
        assert_eq!(conversion("+", 'd', 3, false, ""), "+3");
        assert_eq!(conversion("5", 's', 0, true, "ab"), "   ab");
        assert_eq!(conversion("04", 'x', 0xab, false, ""), "00ab");
    }
}

mod bank_tests {
    use softgpu::exec::memory::wavefronts;

    #[test]
    fn bank_conflicts_by_hand() {
        let at = |f: &dyn Fn(u64) -> u64| {
            let mut a = [0; 32];
            (0..32).for_each(|l| a[l as usize] = f(l));
            a
        };
        assert_eq!(wavefronts(&at(&|l| l * 4), u32::MAX, 4), (1, 1));
        assert_eq!(wavefronts(&at(&|_| 64), u32::MAX, 4), (1, 1));
        assert_eq!(wavefronts(&at(&|l| l * 8), u32::MAX, 4), (2, 1));
        assert_eq!(wavefronts(&at(&|l| l * 128), u32::MAX, 4), (32, 1));
        assert_eq!(wavefronts(&at(&|l| l * 16), u32::MAX, 16), (4, 4));
        assert_eq!(wavefronts(&at(&|l| l * 8), u32::MAX, 8), (2, 2));
        // Rows of 64 bytes read 16 bytes a lane: lanes 0, 2, 4, 6 of a quarter share banks.
        assert_eq!(wavefronts(&at(&|l| l * 64), u32::MAX, 16), (16, 4));
    }
}

mod lexer_tests {
    use softgpu::ptx::lexer::*;

    #[test]
    fn literals() {
        assert_eq!(parse_number("0x1F"), Some(Number::Int(31)));
        assert_eq!(parse_number("017U"), Some(Number::Int(15)));
        assert_eq!(parse_number("0b101"), Some(Number::Int(5)));
        assert_eq!(parse_number("0f3F800000"), Some(Number::F32(0x3f80_0000)));
        assert_eq!(parse_number("0d3FF0000000000000"), Some(Number::F64(0x3ff0_0000_0000_0000)));
        assert_eq!(parse_number("18446744073709551615"), Some(Number::Int(u64::MAX)));
        assert_eq!(parse_number("abc"), None);
    }

    #[test]
    fn comments_and_lines() {
        let mut lex = Lexer::new("// one\n/* two\n three */ word.x::y: -5");
        assert_eq!(lex.word(), "word.x::y");
        assert_eq!(lex.line, 3);
        assert!(lex.take(b':'));
        assert_eq!(lex.number(), Ok(Number::Int((-5i64) as u64)));
        assert_eq!(lex.peek(), 0);
    }
}

mod parser_tests {
    use softgpu::ptx::*;

    #[test]
    fn kernel_with_scopes_and_locations() {
        let text = ".version 8.0\n.target sm_80\n.address_size 64\n.global .align 4 .u32 c[2] = {5, -1};\n\
            .visible .entry k(.param .u64 p0, .param .align 8 .b8 p1[24])\n.maxntid 64, 2, 1\n{\n.reg .pred %p<2>;\n.reg .b32 %r<11>;\n\
            .loc 1 7 3\n{ .reg .b32 %r<2>; mov.u32 %r1, %tid.x; }\n.loc 2 9 1, function_name $L, inlined_at 1 8 2\n\
            @!%p1 bra $X;\nld.global.v2.u32 {%r1, _}, [%r10+-4];\n$X:\nret;\n}\n";
        let m = parse(text).unwrap();
        assert_eq!((m.version, m.target), ((8, 0), 80));
        assert_eq!(m.vars[0].init, vec![Init::Bits(5), Init::Bits((-1i64) as u64)]);
        let f = &m.functions[0];
        assert_eq!((f.max_threads, f.params.len(), f.params[1].bytes), (128, 2, 24));
        let body = f.body.as_ref().unwrap();
        let Stmt::Inst(first) = &body[0] else { panic!("{body:?}") };
        assert_eq!(first.operands[0], Operand::Reg(14), "the inner %r1 hides the outer one");
        assert_eq!((first.loc.file, first.loc.line, first.loc.ptx_line), (1, 7, 11));
        let Stmt::Inst(bra) = &body[1] else { panic!("{body:?}") };
        assert_eq!((bra.guard, bra.loc.outer), (Some((1, true)), (1, 8)));
        let Stmt::Inst(ld) = &body[2] else { panic!("{body:?}") };
        assert_eq!(ld.operands[1], Operand::Address(Box::new(Operand::Reg(12)), -4));
        assert!(matches!(&body[3], Stmt::Label(l, 1) if l == "$X"));
    }

    #[test]
    fn errors_name_the_line() {
        let e = parse(".version 8.0\n.target sm_80\n.entry k()\n{\n mov.u32 %r1 7;\n}").unwrap_err();
        assert_eq!(e.line, 5);
        assert!(parse("hello").is_err());
        assert!(parse(".version 8.0\n.entry k() {").is_err());
    }
}

mod cfg_tests {
    use softgpu::lower::cfg::post_dominators;

    #[test]
    fn diamond_loop_and_early_exit() {
        // 0 -> 1, 2; both -> 3.
        assert_eq!(post_dominators(&[vec![1, 2], vec![3], vec![3], vec![]]), [Some(3), Some(3), Some(3), None]);
        // 0 -> 1; 1 -> 1 or 2.
        assert_eq!(post_dominators(&[vec![1], vec![1, 2], vec![]]), [Some(1), Some(2), None]);
        // 0 leaves at 1 or goes on to 2.
        assert_eq!(post_dominators(&[vec![1, 2], vec![], vec![]]), [None, None, None]);
        // An endless loop beside the exit.
        assert_eq!(post_dominators(&[vec![1, 2], vec![1], vec![]])[2], None);
        // Nested: 0 -> 1, 5; 1 -> 2, 3; 2, 3 -> 4; 4 -> 5.
        let nested = [vec![1, 5], vec![2, 3], vec![4], vec![4], vec![5], vec![]];
        assert_eq!(post_dominators(&nested), [Some(5), Some(4), Some(4), Some(4), Some(5), None]);
    }
}
