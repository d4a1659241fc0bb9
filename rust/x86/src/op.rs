//! The names of operations: one per mnemonic of the manuals, as an enumeration small enough to index tables with.

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident $text:literal)*) => {
        /// An operation. String forms that share a mnemonic with SSE keep the short name; the SSE form ends in `Xmm`.
        /// Sizes, conditions and operands are fields of [`crate::insn::Insn`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Op { $($(#[$doc])* $name,)* }

        impl Op {
            /// Every operation, in the order of its number.
            pub const ALL: &'static [Op] = &[$(Op::$name),*];
        }

        const NAMES: &[&str] = &[$($text),*];
    };
}

impl Op {
    /// How many operations there are.
    pub const COUNT: usize = Op::ALL.len();

    /// The mnemonic in lower case. Families keep their manual's name: `jcc`, `setcc`, `cmovcc`.
    pub const fn name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// The operation with this number, the inverse of `op as u16`.
    pub fn from_number(number: u16) -> Option<Op> {
        Op::ALL.get(usize::from(number)).copied()
    }
}

ops! {
    // General-purpose instructions (SDM vol. 1, 5.1), with the forms that SDM lists under one mnemonic split by what they do.
    Aaa "aaa" Aad "aad" Aam "aam" Aas "aas" Adc "adc" Adcx "adcx" Add "add" Adox "adox" And "and"
    Andn "andn" Arpl "arpl" Bextr "bextr" Blsi "blsi" Blsmsk "blsmsk" Blsr "blsr" Bound "bound" Bsf "bsf"
    Bsr "bsr" Bswap "bswap" Bt "bt" Btc "btc" Btr "btr" Bts "bts" Bzhi "bzhi" Call "call" CallFar "callf"
    Cbw "cbw" Clac "clac" Clc "clc" Cld "cld" Clflush "clflush" Clflushopt "clflushopt" Clwb "clwb"
    Cmc "cmc" Cmovcc "cmovcc" Cmp "cmp" Cmps "cmps" Cmpxchg "cmpxchg" Cmpxchg16b "cmpxchg16b"
    Cmpxchg8b "cmpxchg8b" Cpuid "cpuid" Crc32 "crc32" Cwd "cwd" Daa "daa" Das "das" Dec "dec" Div "div"
    Endbr32 "endbr32" Endbr64 "endbr64" Enter "enter" Idiv "idiv" Imul "imul" In "in" Inc "inc" Ins "ins"
    Int "int" Int1 "int1" Int3 "int3" Into "into" Iret "iret" Jcc "jcc" Jmp "jmp" JmpFar "jmpf"
    Jrcxz "jrcxz" Lahf "lahf" Lds "lds" Lea "lea" Leave "leave" Les "les" Lfence "lfence" Lfs "lfs"
    Lgs "lgs" Lods "lods" Loop "loop" Loope "loope" Loopne "loopne" Lss "lss" Lzcnt "lzcnt" Mfence "mfence"
    Mov "mov" Movbe "movbe" Movdir64b "movdir64b" Movdiri "movdiri" Movnti "movnti" Movs "movs"
    Movsx "movsx" Movsxd "movsxd" Movzx "movzx" Mul "mul" Mulx "mulx" Neg "neg" Nop "nop" Not "not" Or "or"
    Out "out" Outs "outs" Pause "pause" Pdep "pdep" Pext "pext" Pop "pop" Popa "popa" Popcnt "popcnt"
    Popf "popf" Prefetch "prefetch" Push "push" Pusha "pusha" Pushf "pushf" Rcl "rcl" Rcr "rcr"
    Rdfsbase "rdfsbase" Rdgsbase "rdgsbase" Rdpid "rdpid" Rdpkru "rdpkru" Rdrand "rdrand" Rdseed "rdseed"
    Rdtsc "rdtsc" Rdtscp "rdtscp" Ret "ret" RetFar "retf" Rol "rol" Ror "ror" Rorx "rorx" Sahf "sahf"
    Salc "salc" Sar "sar" Sarx "sarx" Sbb "sbb" Scas "scas" Serialize "serialize" Setcc "setcc"
    Sfence "sfence" Shl "shl" Shld "shld" Shlx "shlx" Shr "shr" Shrd "shrd" Shrx "shrx" Stac "stac"
    Stc "stc" Std "std" Stos "stos" Sub "sub" Syscall "syscall" Sysenter "sysenter" Sysexit "sysexit"
    Sysret "sysret" Test "test" Tzcnt "tzcnt" Ud0 "ud0" Ud1 "ud1" Ud2 "ud2" Vmcall "vmcall"
    Vmmcall "vmmcall" Wrfsbase "wrfsbase" Wrgsbase "wrgsbase" Wrpkru "wrpkru" Xabort "xabort" Xadd "xadd"
    Xbegin "xbegin" Xchg "xchg" Xend "xend" Xlat "xlat" Xor "xor" Xtest "xtest"
    // System instructions (SDM vol. 1, 5.20).
    Cli "cli" Clts "clts" Hlt "hlt" Invd "invd" Invlpg "invlpg" Invpcid "invpcid" Lar "lar" Lgdt "lgdt"
    Lidt "lidt" Lldt "lldt" Lmsw "lmsw" Lsl "lsl" Ltr "ltr" Monitor "monitor" MovCr "mov" MovDr "mov"
    Mwait "mwait" Rdmsr "rdmsr" Rdpmc "rdpmc" Rsm "rsm" Sgdt "sgdt" Sidt "sidt" Sldt "sldt" Smsw "smsw"
    Sti "sti" Str "str" Swapgs "swapgs" Verr "verr" Verw "verw" Wbinvd "wbinvd" Wbnoinvd "wbnoinvd"
    Wrmsr "wrmsr"
    // Processor state (SDM vol. 1, 5.9 and 13).
    Fxrstor "fxrstor" Fxsave "fxsave" Ldmxcsr "ldmxcsr" Stmxcsr "stmxcsr" Xgetbv "xgetbv" Xrstor "xrstor"
    Xrstors "xrstors" Xsave "xsave" Xsavec "xsavec" Xsaveopt "xsaveopt" Xsaves "xsaves" Xsetbv "xsetbv"
    // x87 FPU (SDM vol. 1, 5.2). FCMOVcc keeps its condition in `Insn::cond` (U is P).
    F2xm1 "f2xm1" Fabs "fabs" Fadd "fadd" Faddp "faddp" Fbld "fbld" Fbstp "fbstp" Fchs "fchs"
    Fcmovcc "fcmovcc" Fcom "fcom" Fcomi "fcomi" Fcomip "fcomip" Fcomp "fcomp" Fcompp "fcompp" Fcos "fcos"
    Fdecstp "fdecstp" Fdiv "fdiv" Fdivp "fdivp" Fdivr "fdivr" Fdivrp "fdivrp" Ffree "ffree" Ffreep "ffreep"
    Fiadd "fiadd" Ficom "ficom" Ficomp "ficomp" Fidiv "fidiv" Fidivr "fidivr" Fild "fild" Fimul "fimul"
    Fincstp "fincstp" Fist "fist" Fistp "fistp" Fisttp "fisttp" Fisub "fisub" Fisubr "fisubr" Fld "fld"
    Fld1 "fld1" Fldcw "fldcw" Fldenv "fldenv" Fldl2e "fldl2e" Fldl2t "fldl2t" Fldlg2 "fldlg2"
    Fldln2 "fldln2" Fldpi "fldpi" Fldz "fldz" Fmul "fmul" Fmulp "fmulp" Fnclex "fnclex" Fndisi "fndisi"
    Fneni "fneni" Fninit "fninit" Fnop "fnop" Fnsave "fnsave" Fnsetpm "fnsetpm" Fnstcw "fnstcw"
    Fnstenv "fnstenv" Fnstsw "fnstsw" Fpatan "fpatan" Fprem "fprem" Fprem1 "fprem1" Fptan "fptan"
    Frndint "frndint" Frstor "frstor" Fscale "fscale" Fsin "fsin" Fsincos "fsincos" Fsqrt "fsqrt" Fst "fst"
    Fstp "fstp" Fsub "fsub" Fsubp "fsubp" Fsubr "fsubr" Fsubrp "fsubrp" Ftst "ftst" Fucom "fucom"
    Fucomi "fucomi" Fucomip "fucomip" Fucomp "fucomp" Fucompp "fucompp" Fwait "fwait" Fxam "fxam"
    Fxch "fxch" Fxtract "fxtract" Fyl2x "fyl2x" Fyl2xp1 "fyl2xp1"
    // MMX, SSE to SSE4.2, SSE4a, AES, PCLMULQDQ, SHA and GFNI (SDM vol. 1, 5.4 to 5.13). MMX and XMM forms share a name.
    Addpd "addpd" Addps "addps" Addsd "addsd" Addss "addss" Addsubpd "addsubpd" Addsubps "addsubps"
    Aesdec "aesdec" Aesdeclast "aesdeclast" Aesenc "aesenc" Aesenclast "aesenclast" Aesimc "aesimc"
    Aeskeygenassist "aeskeygenassist" Andnpd "andnpd" Andnps "andnps" Andpd "andpd" Andps "andps"
    Blendpd "blendpd" Blendps "blendps" Blendvpd "blendvpd" Blendvps "blendvps" Cmppd "cmppd" Cmpps "cmpps"
    CmpsdXmm "cmpsd" Cmpss "cmpss" Comisd "comisd" Comiss "comiss" Cvtdq2pd "cvtdq2pd" Cvtdq2ps "cvtdq2ps"
    Cvtpd2dq "cvtpd2dq" Cvtpd2pi "cvtpd2pi" Cvtpd2ps "cvtpd2ps" Cvtpi2pd "cvtpi2pd" Cvtpi2ps "cvtpi2ps"
    Cvtps2dq "cvtps2dq" Cvtps2pd "cvtps2pd" Cvtps2pi "cvtps2pi" Cvtsd2si "cvtsd2si" Cvtsd2ss "cvtsd2ss"
    Cvtsi2sd "cvtsi2sd" Cvtsi2ss "cvtsi2ss" Cvtss2sd "cvtss2sd" Cvtss2si "cvtss2si" Cvttpd2dq "cvttpd2dq"
    Cvttpd2pi "cvttpd2pi" Cvttps2dq "cvttps2dq" Cvttps2pi "cvttps2pi" Cvttsd2si "cvttsd2si"
    Cvttss2si "cvttss2si" Divpd "divpd" Divps "divps" Divsd "divsd" Divss "divss" Dppd "dppd" Dpps "dpps"
    Emms "emms" Extractps "extractps" Extrq "extrq" Gf2p8affineinvqb "gf2p8affineinvqb"
    Gf2p8affineqb "gf2p8affineqb" Gf2p8mulb "gf2p8mulb" Haddpd "haddpd" Haddps "haddps" Hsubpd "hsubpd"
    Hsubps "hsubps" Insertps "insertps" Insertq "insertq" Lddqu "lddqu" Maskmovdqu "maskmovdqu"
    Maskmovq "maskmovq" Maxpd "maxpd" Maxps "maxps" Maxsd "maxsd" Maxss "maxss" Minpd "minpd" Minps "minps"
    Minsd "minsd" Minss "minss" Movapd "movapd" Movaps "movaps" Movd "movd" Movddup "movddup"
    Movdq2q "movdq2q" Movdqa "movdqa" Movdqu "movdqu" Movhlps "movhlps" Movhpd "movhpd" Movhps "movhps"
    Movlhps "movlhps" Movlpd "movlpd" Movlps "movlps" Movmskpd "movmskpd" Movmskps "movmskps"
    Movntdq "movntdq" Movntdqa "movntdqa" Movntpd "movntpd" Movntps "movntps" Movntq "movntq"
    Movntsd "movntsd" Movntss "movntss" Movq "movq" Movq2dq "movq2dq" MovsdXmm "movsd" Movshdup "movshdup"
    Movsldup "movsldup" Movss "movss" Movupd "movupd" Movups "movups" Mpsadbw "mpsadbw" Mulpd "mulpd"
    Mulps "mulps" Mulsd "mulsd" Mulss "mulss" Orpd "orpd" Orps "orps" Pabsb "pabsb" Pabsd "pabsd"
    Pabsw "pabsw" Packssdw "packssdw" Packsswb "packsswb" Packusdw "packusdw" Packuswb "packuswb"
    Paddb "paddb" Paddd "paddd" Paddq "paddq" Paddsb "paddsb" Paddsw "paddsw" Paddusb "paddusb"
    Paddusw "paddusw" Paddw "paddw" Palignr "palignr" Pand "pand" Pandn "pandn" Pavgb "pavgb" Pavgw "pavgw"
    Pblendvb "pblendvb" Pblendw "pblendw" Pclmulqdq "pclmulqdq" Pcmpeqb "pcmpeqb" Pcmpeqd "pcmpeqd"
    Pcmpeqq "pcmpeqq" Pcmpeqw "pcmpeqw" Pcmpestri "pcmpestri" Pcmpestrm "pcmpestrm" Pcmpgtb "pcmpgtb"
    Pcmpgtd "pcmpgtd" Pcmpgtq "pcmpgtq" Pcmpgtw "pcmpgtw" Pcmpistri "pcmpistri" Pcmpistrm "pcmpistrm"
    Pextrb "pextrb" Pextrd "pextrd" Pextrq "pextrq" Pextrw "pextrw" Phaddd "phaddd" Phaddsw "phaddsw"
    Phaddw "phaddw" Phminposuw "phminposuw" Phsubd "phsubd" Phsubsw "phsubsw" Phsubw "phsubw"
    Pinsrb "pinsrb" Pinsrd "pinsrd" Pinsrq "pinsrq" Pinsrw "pinsrw" Pmaddubsw "pmaddubsw" Pmaddwd "pmaddwd"
    Pmaxsb "pmaxsb" Pmaxsd "pmaxsd" Pmaxsw "pmaxsw" Pmaxub "pmaxub" Pmaxud "pmaxud" Pmaxuw "pmaxuw"
    Pminsb "pminsb" Pminsd "pminsd" Pminsw "pminsw" Pminub "pminub" Pminud "pminud" Pminuw "pminuw"
    Pmovmskb "pmovmskb" Pmovsxbd "pmovsxbd" Pmovsxbq "pmovsxbq" Pmovsxbw "pmovsxbw" Pmovsxdq "pmovsxdq"
    Pmovsxwd "pmovsxwd" Pmovsxwq "pmovsxwq" Pmovzxbd "pmovzxbd" Pmovzxbq "pmovzxbq" Pmovzxbw "pmovzxbw"
    Pmovzxdq "pmovzxdq" Pmovzxwd "pmovzxwd" Pmovzxwq "pmovzxwq" Pmuldq "pmuldq" Pmulhrsw "pmulhrsw"
    Pmulhuw "pmulhuw" Pmulhw "pmulhw" Pmulld "pmulld" Pmullw "pmullw" Pmuludq "pmuludq" Por "por"
    Psadbw "psadbw" Pshufb "pshufb" Pshufd "pshufd" Pshufhw "pshufhw" Pshuflw "pshuflw" Pshufw "pshufw"
    Psignb "psignb" Psignd "psignd" Psignw "psignw" Pslld "pslld" Pslldq "pslldq" Psllq "psllq"
    Psllw "psllw" Psrad "psrad" Psraw "psraw" Psrld "psrld" Psrldq "psrldq" Psrlq "psrlq" Psrlw "psrlw"
    Psubb "psubb" Psubd "psubd" Psubq "psubq" Psubsb "psubsb" Psubsw "psubsw" Psubusb "psubusb"
    Psubusw "psubusw" Psubw "psubw" Ptest "ptest" Punpckhbw "punpckhbw" Punpckhdq "punpckhdq"
    Punpckhqdq "punpckhqdq" Punpckhwd "punpckhwd" Punpcklbw "punpcklbw" Punpckldq "punpckldq"
    Punpcklqdq "punpcklqdq" Punpcklwd "punpcklwd" Pxor "pxor" Rcpps "rcpps" Rcpss "rcpss" Roundpd "roundpd"
    Roundps "roundps" Roundsd "roundsd" Roundss "roundss" Rsqrtps "rsqrtps" Rsqrtss "rsqrtss"
    Sha1msg1 "sha1msg1" Sha1msg2 "sha1msg2" Sha1nexte "sha1nexte" Sha1rnds4 "sha1rnds4"
    Sha256msg1 "sha256msg1" Sha256msg2 "sha256msg2" Sha256rnds2 "sha256rnds2" Shufpd "shufpd"
    Shufps "shufps" Sqrtpd "sqrtpd" Sqrtps "sqrtps" Sqrtsd "sqrtsd" Sqrtss "sqrtss" Subpd "subpd"
    Subps "subps" Subsd "subsd" Subss "subss" Ucomisd "ucomisd" Ucomiss "ucomiss" Unpckhpd "unpckhpd"
    Unpckhps "unpckhps" Unpcklpd "unpcklpd" Unpcklps "unpcklps" Xorpd "xorpd" Xorps "xorps"
    // AVX, AVX2, FMA, F16C and the VEX forms of what stands above (SDM vol. 1, 5.14 to 5.17).
    Vaddpd "vaddpd" Vaddps "vaddps" Vaddsd "vaddsd" Vaddss "vaddss" Vaddsubpd "vaddsubpd"
    Vaddsubps "vaddsubps" Vaesdec "vaesdec" Vaesdeclast "vaesdeclast" Vaesenc "vaesenc"
    Vaesenclast "vaesenclast" Vaesimc "vaesimc" Vaeskeygenassist "vaeskeygenassist" Vandnpd "vandnpd"
    Vandnps "vandnps" Vandpd "vandpd" Vandps "vandps" Vblendpd "vblendpd" Vblendps "vblendps"
    Vblendvpd "vblendvpd" Vblendvps "vblendvps" Vbroadcastf128 "vbroadcastf128"
    Vbroadcasti128 "vbroadcasti128" Vbroadcastsd "vbroadcastsd" Vbroadcastss "vbroadcastss" Vcmppd "vcmppd"
    Vcmpps "vcmpps" Vcmpsd "vcmpsd" Vcmpss "vcmpss" Vcomisd "vcomisd" Vcomiss "vcomiss"
    Vcvtdq2pd "vcvtdq2pd" Vcvtdq2ps "vcvtdq2ps" Vcvtpd2dq "vcvtpd2dq" Vcvtpd2ps "vcvtpd2ps"
    Vcvtph2ps "vcvtph2ps" Vcvtps2dq "vcvtps2dq" Vcvtps2pd "vcvtps2pd" Vcvtps2ph "vcvtps2ph"
    Vcvtsd2si "vcvtsd2si" Vcvtsd2ss "vcvtsd2ss" Vcvtsi2sd "vcvtsi2sd" Vcvtsi2ss "vcvtsi2ss"
    Vcvtss2sd "vcvtss2sd" Vcvtss2si "vcvtss2si" Vcvttpd2dq "vcvttpd2dq" Vcvttps2dq "vcvttps2dq"
    Vcvttsd2si "vcvttsd2si" Vcvttss2si "vcvttss2si" Vdivpd "vdivpd" Vdivps "vdivps" Vdivsd "vdivsd"
    Vdivss "vdivss" Vdppd "vdppd" Vdpps "vdpps" Vextractf128 "vextractf128" Vextracti128 "vextracti128"
    Vextractps "vextractps" Vfmadd132pd "vfmadd132pd" Vfmadd132ps "vfmadd132ps" Vfmadd132sd "vfmadd132sd"
    Vfmadd132ss "vfmadd132ss" Vfmadd213pd "vfmadd213pd" Vfmadd213ps "vfmadd213ps" Vfmadd213sd "vfmadd213sd"
    Vfmadd213ss "vfmadd213ss" Vfmadd231pd "vfmadd231pd" Vfmadd231ps "vfmadd231ps" Vfmadd231sd "vfmadd231sd"
    Vfmadd231ss "vfmadd231ss" Vfmaddsub132pd "vfmaddsub132pd" Vfmaddsub132ps "vfmaddsub132ps"
    Vfmaddsub213pd "vfmaddsub213pd" Vfmaddsub213ps "vfmaddsub213ps" Vfmaddsub231pd "vfmaddsub231pd"
    Vfmaddsub231ps "vfmaddsub231ps" Vfmsub132pd "vfmsub132pd" Vfmsub132ps "vfmsub132ps"
    Vfmsub132sd "vfmsub132sd" Vfmsub132ss "vfmsub132ss" Vfmsub213pd "vfmsub213pd" Vfmsub213ps "vfmsub213ps"
    Vfmsub213sd "vfmsub213sd" Vfmsub213ss "vfmsub213ss" Vfmsub231pd "vfmsub231pd" Vfmsub231ps "vfmsub231ps"
    Vfmsub231sd "vfmsub231sd" Vfmsub231ss "vfmsub231ss" Vfmsubadd132pd "vfmsubadd132pd"
    Vfmsubadd132ps "vfmsubadd132ps" Vfmsubadd213pd "vfmsubadd213pd" Vfmsubadd213ps "vfmsubadd213ps"
    Vfmsubadd231pd "vfmsubadd231pd" Vfmsubadd231ps "vfmsubadd231ps" Vfnmadd132pd "vfnmadd132pd"
    Vfnmadd132ps "vfnmadd132ps" Vfnmadd132sd "vfnmadd132sd" Vfnmadd132ss "vfnmadd132ss"
    Vfnmadd213pd "vfnmadd213pd" Vfnmadd213ps "vfnmadd213ps" Vfnmadd213sd "vfnmadd213sd"
    Vfnmadd213ss "vfnmadd213ss" Vfnmadd231pd "vfnmadd231pd" Vfnmadd231ps "vfnmadd231ps"
    Vfnmadd231sd "vfnmadd231sd" Vfnmadd231ss "vfnmadd231ss" Vfnmsub132pd "vfnmsub132pd"
    Vfnmsub132ps "vfnmsub132ps" Vfnmsub132sd "vfnmsub132sd" Vfnmsub132ss "vfnmsub132ss"
    Vfnmsub213pd "vfnmsub213pd" Vfnmsub213ps "vfnmsub213ps" Vfnmsub213sd "vfnmsub213sd"
    Vfnmsub213ss "vfnmsub213ss" Vfnmsub231pd "vfnmsub231pd" Vfnmsub231ps "vfnmsub231ps"
    Vfnmsub231sd "vfnmsub231sd" Vfnmsub231ss "vfnmsub231ss" Vgatherdpd "vgatherdpd" Vgatherdps "vgatherdps"
    Vgatherqpd "vgatherqpd" Vgatherqps "vgatherqps" Vgf2p8affineinvqb "vgf2p8affineinvqb"
    Vgf2p8affineqb "vgf2p8affineqb" Vgf2p8mulb "vgf2p8mulb" Vhaddpd "vhaddpd" Vhaddps "vhaddps"
    Vhsubpd "vhsubpd" Vhsubps "vhsubps" Vinsertf128 "vinsertf128" Vinserti128 "vinserti128"
    Vinsertps "vinsertps" Vlddqu "vlddqu" Vldmxcsr "vldmxcsr" Vmaskmovdqu "vmaskmovdqu"
    Vmaskmovpd "vmaskmovpd" Vmaskmovps "vmaskmovps" Vmaxpd "vmaxpd" Vmaxps "vmaxps" Vmaxsd "vmaxsd"
    Vmaxss "vmaxss" Vminpd "vminpd" Vminps "vminps" Vminsd "vminsd" Vminss "vminss" Vmovapd "vmovapd"
    Vmovaps "vmovaps" Vmovd "vmovd" Vmovddup "vmovddup" Vmovdqa "vmovdqa" Vmovdqu "vmovdqu"
    Vmovhlps "vmovhlps" Vmovhpd "vmovhpd" Vmovhps "vmovhps" Vmovlhps "vmovlhps" Vmovlpd "vmovlpd"
    Vmovlps "vmovlps" Vmovmskpd "vmovmskpd" Vmovmskps "vmovmskps" Vmovntdq "vmovntdq" Vmovntdqa "vmovntdqa"
    Vmovntpd "vmovntpd" Vmovntps "vmovntps" Vmovq "vmovq" Vmovsd "vmovsd" Vmovshdup "vmovshdup"
    Vmovsldup "vmovsldup" Vmovss "vmovss" Vmovupd "vmovupd" Vmovups "vmovups" Vmpsadbw "vmpsadbw"
    Vmulpd "vmulpd" Vmulps "vmulps" Vmulsd "vmulsd" Vmulss "vmulss" Vorpd "vorpd" Vorps "vorps"
    Vpabsb "vpabsb" Vpabsd "vpabsd" Vpabsw "vpabsw" Vpackssdw "vpackssdw" Vpacksswb "vpacksswb"
    Vpackusdw "vpackusdw" Vpackuswb "vpackuswb" Vpaddb "vpaddb" Vpaddd "vpaddd" Vpaddq "vpaddq"
    Vpaddsb "vpaddsb" Vpaddsw "vpaddsw" Vpaddusb "vpaddusb" Vpaddusw "vpaddusw" Vpaddw "vpaddw"
    Vpalignr "vpalignr" Vpand "vpand" Vpandn "vpandn" Vpavgb "vpavgb" Vpavgw "vpavgw" Vpblendd "vpblendd"
    Vpblendvb "vpblendvb" Vpblendw "vpblendw" Vpbroadcastb "vpbroadcastb" Vpbroadcastd "vpbroadcastd"
    Vpbroadcastq "vpbroadcastq" Vpbroadcastw "vpbroadcastw" Vpclmulqdq "vpclmulqdq" Vpcmpeqb "vpcmpeqb"
    Vpcmpeqd "vpcmpeqd" Vpcmpeqq "vpcmpeqq" Vpcmpeqw "vpcmpeqw" Vpcmpestri "vpcmpestri"
    Vpcmpestrm "vpcmpestrm" Vpcmpgtb "vpcmpgtb" Vpcmpgtd "vpcmpgtd" Vpcmpgtq "vpcmpgtq" Vpcmpgtw "vpcmpgtw"
    Vpcmpistri "vpcmpistri" Vpcmpistrm "vpcmpistrm" Vperm2f128 "vperm2f128" Vperm2i128 "vperm2i128"
    Vpermd "vpermd" Vpermilpd "vpermilpd" Vpermilps "vpermilps" Vpermpd "vpermpd" Vpermps "vpermps"
    Vpermq "vpermq" Vpextrb "vpextrb" Vpextrd "vpextrd" Vpextrq "vpextrq" Vpextrw "vpextrw"
    Vpgatherdd "vpgatherdd" Vpgatherdq "vpgatherdq" Vpgatherqd "vpgatherqd" Vpgatherqq "vpgatherqq"
    Vphaddd "vphaddd" Vphaddsw "vphaddsw" Vphaddw "vphaddw" Vphminposuw "vphminposuw" Vphsubd "vphsubd"
    Vphsubsw "vphsubsw" Vphsubw "vphsubw" Vpinsrb "vpinsrb" Vpinsrd "vpinsrd" Vpinsrq "vpinsrq"
    Vpinsrw "vpinsrw" Vpmaddubsw "vpmaddubsw" Vpmaddwd "vpmaddwd" Vpmaskmovd "vpmaskmovd"
    Vpmaskmovq "vpmaskmovq" Vpmaxsb "vpmaxsb" Vpmaxsd "vpmaxsd" Vpmaxsw "vpmaxsw" Vpmaxub "vpmaxub"
    Vpmaxud "vpmaxud" Vpmaxuw "vpmaxuw" Vpminsb "vpminsb" Vpminsd "vpminsd" Vpminsw "vpminsw"
    Vpminub "vpminub" Vpminud "vpminud" Vpminuw "vpminuw" Vpmovmskb "vpmovmskb" Vpmovsxbd "vpmovsxbd"
    Vpmovsxbq "vpmovsxbq" Vpmovsxbw "vpmovsxbw" Vpmovsxdq "vpmovsxdq" Vpmovsxwd "vpmovsxwd"
    Vpmovsxwq "vpmovsxwq" Vpmovzxbd "vpmovzxbd" Vpmovzxbq "vpmovzxbq" Vpmovzxbw "vpmovzxbw"
    Vpmovzxdq "vpmovzxdq" Vpmovzxwd "vpmovzxwd" Vpmovzxwq "vpmovzxwq" Vpmuldq "vpmuldq"
    Vpmulhrsw "vpmulhrsw" Vpmulhuw "vpmulhuw" Vpmulhw "vpmulhw" Vpmulld "vpmulld" Vpmullw "vpmullw"
    Vpmuludq "vpmuludq" Vpor "vpor" Vpsadbw "vpsadbw" Vpshufb "vpshufb" Vpshufd "vpshufd"
    Vpshufhw "vpshufhw" Vpshuflw "vpshuflw" Vpsignb "vpsignb" Vpsignd "vpsignd" Vpsignw "vpsignw"
    Vpslld "vpslld" Vpslldq "vpslldq" Vpsllq "vpsllq" Vpsllvd "vpsllvd" Vpsllvq "vpsllvq" Vpsllw "vpsllw"
    Vpsrad "vpsrad" Vpsravd "vpsravd" Vpsraw "vpsraw" Vpsrld "vpsrld" Vpsrldq "vpsrldq" Vpsrlq "vpsrlq"
    Vpsrlvd "vpsrlvd" Vpsrlvq "vpsrlvq" Vpsrlw "vpsrlw" Vpsubb "vpsubb" Vpsubd "vpsubd" Vpsubq "vpsubq"
    Vpsubsb "vpsubsb" Vpsubsw "vpsubsw" Vpsubusb "vpsubusb" Vpsubusw "vpsubusw" Vpsubw "vpsubw"
    Vptest "vptest" Vpunpckhbw "vpunpckhbw" Vpunpckhdq "vpunpckhdq" Vpunpckhqdq "vpunpckhqdq"
    Vpunpckhwd "vpunpckhwd" Vpunpcklbw "vpunpcklbw" Vpunpckldq "vpunpckldq" Vpunpcklqdq "vpunpcklqdq"
    Vpunpcklwd "vpunpcklwd" Vpxor "vpxor" Vrcpps "vrcpps" Vrcpss "vrcpss" Vroundpd "vroundpd"
    Vroundps "vroundps" Vroundsd "vroundsd" Vroundss "vroundss" Vrsqrtps "vrsqrtps" Vrsqrtss "vrsqrtss"
    Vshufpd "vshufpd" Vshufps "vshufps" Vsqrtpd "vsqrtpd" Vsqrtps "vsqrtps" Vsqrtsd "vsqrtsd"
    Vsqrtss "vsqrtss" Vstmxcsr "vstmxcsr" Vsubpd "vsubpd" Vsubps "vsubps" Vsubsd "vsubsd" Vsubss "vsubss"
    Vtestpd "vtestpd" Vtestps "vtestps" Vucomisd "vucomisd" Vucomiss "vucomiss" Vunpckhpd "vunpckhpd"
    Vunpckhps "vunpckhps" Vunpcklpd "vunpcklpd" Vunpcklps "vunpcklps" Vxorpd "vxorpd" Vxorps "vxorps"
    Vzeroall "vzeroall" Vzeroupper "vzeroupper"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_a_bijection_but_for_the_known_sharers() {
        for (number, &op) in Op::ALL.iter().enumerate() {
            assert_eq!(op as usize, number);
            assert_eq!(Op::from_number(number as u16), Some(op));
        }
        assert_eq!(Op::from_number(Op::COUNT as u16), None);
        let mut names: Vec<_> = Op::ALL.iter().map(|op| op.name()).collect();
        names.sort_unstable();
        let shared: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        assert_eq!(shared, ["mov", "mov"], "only the control and debug register moves share a mnemonic");
    }
}
