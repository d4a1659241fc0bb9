use super::*;
use crate::regs::xcr0;

fn dynamic() -> Dynamic {
    Dynamic { in_64bit_mode: true, ..Dynamic::reset(1_000_000) }
}

fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    X86_64_V2.cpuid(leaf, subleaf, &dynamic())
}

#[test]
fn vendor_and_brand_spell_what_they_should() {
    let leaf = cpuid(0, 0);
    assert_eq!(leaf.eax, 0x16);
    let name: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(name, b"GenuineIntel");
    let brand: Vec<u8> = (0x8000_0002..=0x8000_0004)
        .map(|leaf| cpuid(leaf, 0))
        .flat_map(|part| [part.eax, part.ebx, part.ecx, part.edx].map(u32::to_le_bytes).concat())
        .collect();
    assert_eq!(brand.len(), 48);
    assert_eq!(brand.iter().position(|&byte| byte == 0), Some(X86_64_V2.brand.len()));
}

#[test]
fn the_processor_is_in_no_table_of_real_ones() {
    let signature = cpuid(1, 0).eax;
    assert_eq!((signature >> 8 & 0xf, signature >> 16 & 0xf, signature >> 4 & 0xf), (6, 0xf, 0));
}

#[test]
fn features_read_back_as_the_model_lists_them() {
    let read = Features::from_cpuid(cpuid);
    assert_eq!(read, X86_64_V2.features);
}

#[test]
fn level_2_of_the_psabi_is_there_and_level_3_is_not() {
    let level_2 = Features::CMOV
        | Features::CX8
        | Features::FPU
        | Features::FXSR
        | Features::MMX
        | Features::SYSCALL
        | Features::SSE
        | Features::SSE2
        | Features::CX16
        | Features::LAHF64
        | Features::POPCNT
        | Features::SSE3
        | Features::SSE4_1
        | Features::SSE4_2
        | Features::SSSE3;
    assert!(X86_64_V2.features.contains(level_2));
    let level_3 = Features::AVX
        | Features::AVX2
        | Features::BMI1
        | Features::BMI2
        | Features::F16C
        | Features::FMA
        | Features::LZCNT
        | Features::MOVBE;
    let refused = level_3 | Features::SMAP | Features::UMIP | Features::HYPERVISOR | Features::MONITOR;
    assert!(!X86_64_V2.features.intersects(refused));
    assert_eq!(cpuid(1, 0).ecx >> 31, 0, "no hypervisor bit");
}

#[test]
fn leaves_out_of_range_give_the_highest_basic_leaf() {
    for leaf in [0x17, 0x80, 0x4000_0000, 0x4000_0001, 0x7fff_ffff, 0x8000_0009, 0xc000_0000, u32::MAX] {
        assert_eq!(cpuid(leaf, 0), cpuid(0x16, 0), "{leaf:#x}");
    }
    assert_eq!(cpuid(0x16, 0), Cpuid { eax: 1000, ebx: 1000, ecx: 100, edx: 0 });
}

#[test]
fn what_depends_on_the_state_follows_it() {
    let off = Dynamic { apic_enabled: false, in_64bit_mode: false, ..dynamic() };
    assert_eq!(X86_64_V2.cpuid(1, 0, &off).edx & 1 << 9, 0, "APIC");
    assert_eq!(X86_64_V2.cpuid(0x8000_0001, 0, &off).edx & 1 << 11, 0, "SYSCALL outside 64-bit mode");
    assert_eq!(cpuid(1, 0).ecx & 1 << 27, 0);
    let on = Dynamic { osxsave: true, ..dynamic() };
    assert_ne!(X86_64_V2.cpuid(1, 0, &on).ecx & 1 << 27, 0, "OSXSAVE");
}

#[test]
fn state_sizes_agree_with_what_can_be_enabled() {
    assert_eq!(X86_64_V2.xcr0_mask(), xcr0::X87 | xcr0::SSE);
    assert_eq!(cpuid(0xd, 0), Cpuid { eax: 3, ebx: 576, ecx: 576, edx: 0 });
    assert_eq!(cpuid(0xd, 1), Cpuid { eax: 1, ..Cpuid::default() });
    assert_eq!(cpuid(0xd, 2), Cpuid::default());
}

#[test]
fn topology_agrees_between_leaves_1_4_and_0bh() {
    for (cores, threads_per_core) in [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (64, 1)] {
        let topology = Topology { cores, threads_per_core };
        for n in [0, topology.logical_processors() - 1] {
            let dynamic = Dynamic { topology, apic_id: topology.apic_id(n), ..dynamic() };
            let (one, thread, package) = (
                X86_64_V2.cpuid(1, 0, &dynamic),
                X86_64_V2.cpuid(0xb, 0, &dynamic),
                X86_64_V2.cpuid(0xb, 1, &dynamic),
            );
            assert_eq!(one.ebx >> 24, dynamic.apic_id);
            assert_eq!((thread.edx, package.edx), (dynamic.apic_id, dynamic.apic_id));
            assert_eq!(one.edx >> 28 & 1, u32::from(topology.logical_processors() > 1));
            assert_eq!(one.ebx >> 16 & 0xff, 1 << package.eax);
            assert_eq!((thread.ebx, package.ebx), (threads_per_core, cores * threads_per_core));
            assert_eq!((thread.ecx, package.ecx), (0x100, 0x201));
            assert_eq!(dynamic.apic_id >> package.eax, 0, "one package");
            let last_level = X86_64_V2.cpuid(4, 3, &dynamic);
            assert_eq!((last_level.eax >> 14 & 0xfff) + 1, 1 << package.eax);
        }
    }
    assert_eq!(X86_64_V2.cpuid(0xb, 2, &dynamic()), Cpuid { ecx: 2, ..Cpuid::default() });
}

#[test]
fn caches_have_the_sizes_of_the_model() {
    for (n, cache) in X86_64_V2.caches.iter().enumerate() {
        let leaf = cpuid(4, n as u32);
        let (ways, line) = ((leaf.ebx >> 22) + 1, (leaf.ebx & 0xfff) + 1);
        assert_eq!(ways * line * (leaf.ecx + 1), cache.kib * 1024);
    }
    assert_eq!(cpuid(4, X86_64_V2.caches.len() as u32), Cpuid::default());
}

#[test]
fn leaf_15_gives_the_counter_frequency_as_linux_computes_it() {
    for tsc_khz in [1_000_000u32, 2_893_200, 3_000_000, 5_700_000, 100] {
        let leaf = X86_64_V2.cpuid(0x15, 0, &Dynamic::reset(tsc_khz));
        let product = (leaf.ecx / 1000).checked_mul(leaf.ebx).expect("32 bits");
        assert_eq!(product / leaf.eax, tsc_khz);
    }
    let odd = X86_64_V2.cpuid(0x15, 0, &Dynamic::reset(2_893_217));
    let khz = u64::from(odd.ecx / 1000) * u64::from(odd.ebx) / u64::from(odd.eax);
    assert!(khz.abs_diff(2_893_217) < 1000);
    assert_eq!(X86_64_V2.cpuid(0x15, 0, &Dynamic::reset(0)), Cpuid::default());
}

#[test]
fn control_register_masks_follow_the_features() {
    let mask = X86_64_V2.cr4_mask();
    assert_ne!(mask & cr4::PCIDE, 0);
    assert_eq!(mask & (cr4::SMAP | cr4::UMIP | cr4::LA57 | cr4::VMXE | cr4::PKE), 0);
    assert_eq!(X86_64_V2.efer_mask(), efer::ALL);
    assert_eq!(Model::by_name("x86-64-v2").map(|model| model.name), Some("x86-64-v2"));
    for name in ["x86-64-v3", "host"] {
        assert_eq!(Model::by_name(name).map(|model| model.name), Some(name));
    }
    assert!(Model::by_name("z80").is_none());
}

#[test]
fn level_3_of_the_psabi_is_the_other_model() {
    let level_3 = Features::AVX
        | Features::AVX2
        | Features::BMI1
        | Features::BMI2
        | Features::F16C
        | Features::FMA
        | Features::LZCNT
        | Features::MOVBE;
    assert_eq!(X86_64_V3.features - X86_64_V2.features, level_3 | Features::XSAVEC);
    let read = Features::from_cpuid(|leaf, subleaf| X86_64_V3.cpuid(leaf, subleaf, &dynamic()));
    assert_eq!(read, X86_64_V3.features);
    assert_eq!((X86_64_V3.signature, X86_64_V3.vendor), (X86_64_V2.signature, X86_64_V2.vendor));
}

/// SDM vol. 2, CPUID leaf 0Dh, and vol. 1, 13.2.
#[test]
fn avx_state_has_its_component() {
    let all = xcr0::X87 | xcr0::SSE | xcr0::AVX;
    assert_eq!(X86_64_V3.xcr0_mask(), all);
    for (enabled, size) in [(xcr0::X87, 576), (xcr0::X87 | xcr0::SSE, 576), (all, 832)] {
        let dynamic = Dynamic { xcr0: enabled, ..dynamic() };
        let leaf = |subleaf| X86_64_V3.cpuid(0xd, subleaf, &dynamic);
        assert_eq!(leaf(0), Cpuid { eax: 7, ebx: size, ecx: 832, edx: 0 });
        assert_eq!(leaf(1), Cpuid { eax: 7, ebx: size, ecx: 0, edx: 0 }, "XSAVEOPT, XSAVEC, XGETBV of 1");
        assert_eq!(leaf(2), Cpuid { eax: 256, ebx: 576, ecx: 0, edx: 0 });
        assert_eq!(leaf(3), Cpuid::default());
    }
}
