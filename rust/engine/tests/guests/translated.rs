//! What random programs have found in the translator, each as small as it gets.

#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use iced_x86::code_asm::*;

use crate::common::engines::translator;
use crate::common::*;

/// A guest on the translator, whatever the others run on.
fn guest() -> Guest {
    let mut g = Guest::long();
    assert!(g.engine.set_translate(Some(translator("translator"))), "this host cannot translate");
    g
}

#[test]
fn vector_registers_that_were_lent_as_the_budget_ran_out_are_not_kept() {
    for more in 40..70 {
        let mut g = guest();
        g.program(|a| {
            let (mut again, mut vectors) = (a.create_label(), a.create_label());
            a.mov(ecx, 200)?;
            a.set_label(&mut again)?;
            a.nop()?;
            a.jmp(vectors)?;
            a.set_label(&mut vectors)?;
            a.movups(xmm1, xmm0)?;
            a.dec(ecx)?;
            a.jnz(again)?;
            a.hlt()
        });
        g.run_until(300);
        g.run_until(300 + more);
        g.cpu().vector().xmm[0] = 7;
        g.expect_halt();
        assert_eq!(g.cpu().vector().xmm[1], 7, "stopped after {more} more");
    }
}
