//! The hypercall page: a stub for each number, for kernels that call into one (note HYPERCALL_PAGE, MSR 40000000h).

/// Bytes of a stub.
const STUB: usize = 32;
/// iret is jumped to, and builds the lower part of its frame.
const IRET: usize = 23;

/// The page's contents.
pub fn stubs() -> Vec<u8> {
    let mut page = vec![0xcc; 4096];
    for (number, stub) in page.chunks_exact_mut(STUB).enumerate() {
        let code = stub_code(number);
        stub[..code.len()].copy_from_slice(&code);
    }
    page
}

fn stub_code(number: usize) -> Vec<u8> {
    // push rcx; push r11
    let mut code = vec![0x51, 0x41, 0x53];
    if number == IRET {
        // push rax
        code.push(0x50);
    }
    // mov eax, number; syscall
    code.push(0xb8);
    code.extend((number as u32).to_le_bytes());
    code.extend([0x0f, 0x05]);
    if number != IRET {
        // pop r11; pop rcx; ret
        code.extend([0x41, 0x5b, 0x59, 0xc3]);
    }
    code
}
