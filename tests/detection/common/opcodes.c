/*
 * How single instructions end, by ring and width: what a processor leaves undefined must be #UD, what belongs to ring 0 must
 * fault in ring 3 with the right exception and error code, and what is harmless must run. Instructions that a processor may
 * have are tried only where its CPUID denies them.
 */

#include "detect.h"

#define ERROR(vector, code) ((uint32_t)(vector) | (uint32_t)(code) << 16)
enum { SKIP = 0xffff };
enum { LONG = 1, COMPAT = 2, BOTH = 3 };

/* Features after whose absence an encoding is undefined (SDM vol. 2, CPUID; those of AMD from its manual, vol. 3, appendix E). */
#define ALWAYS 0
#define F_MONITOR FEATURE(1, 0, ECX, 3)
#define F_VMX FEATURE(1, 0, ECX, 5)
#define F_SMX FEATURE(1, 0, ECX, 6)
#define F_MOVBE FEATURE(1, 0, ECX, 22)
#define F_AVX FEATURE(1, 0, ECX, 28)
#define F_SGX FEATURE(7, 0, EBX, 2)
#define F_RTM FEATURE(7, 0, EBX, 11)
#define F_RDSEED FEATURE(7, 0, EBX, 18)
#define F_ADX FEATURE(7, 0, EBX, 19)
#define F_SMAP FEATURE(7, 0, EBX, 20)
#define F_CLFLUSHOPT FEATURE(7, 0, EBX, 23)
#define F_CLWB FEATURE(7, 0, EBX, 24)
#define F_SHA FEATURE(7, 0, EBX, 29)
#define F_UMIP FEATURE(7, 0, ECX, 2)
#define F_PKU FEATURE(7, 0, ECX, 3)
#define F_WAITPKG FEATURE(7, 0, ECX, 5)
#define F_GFNI FEATURE(7, 0, ECX, 8)
#define F_RDPID FEATURE(7, 0, ECX, 22)
#define F_MOVDIRI FEATURE(7, 0, ECX, 27)
#define F_MOVDIR64B FEATURE(7, 0, ECX, 28)
#define F_ENQCMD FEATURE(7, 0, ECX, 29)
#define F_SERIALIZE FEATURE(7, 0, EDX, 14)
#define F_TSXLDTRK FEATURE(7, 0, EDX, 16)
#define F_PCONFIG FEATURE(7, 0, EDX, 18)
#define F_UINTR FEATURE(7, 0, EDX, 5)
#define F_CET_SS FEATURE(7, 0, ECX, 7)
#define F_XSAVEC FEATURE(0xd, 1, EAX, 1)
#define F_XGETBV1 FEATURE(0xd, 1, EAX, 2)
#define F_XSAVES FEATURE(0xd, 1, EAX, 3)
#define F_SVM FEATURE(0x80000001, 0, ECX, 2)
#define F_SSE4A FEATURE(0x80000001, 0, ECX, 6)
#define F_3DNOW FEATURE(0x80000001, 0, EDX, 31)

struct probe {
    const char *name, *code;
    uint8_t length, widths;
    uint32_t ring0, ring3;
    uint64_t unless;
};

#define PROBE(name, widths, ring0, ring3, unless, code) {name, code, sizeof code - 1, widths, ring0, ring3, unless}
#define UNDEFINED(name, widths, unless, code) PROBE(name, widths, UD, UD, unless, code)
#define HARMLESS(name, widths, code) PROBE(name, widths, DONE, DONE, ALWAYS, code)
#define PRIVILEGED(name, widths, ring0, code) PROBE(name, widths, ring0, GP, ALWAYS, code)

/* Instructions that virtual machines gave a meaning, and those of virtualization itself. */
static const struct probe virtualization[] = {
    UNDEFINED("vmcall", BOTH, F_VMX, "\x0f\x01\xc1"),
    UNDEFINED("vmlaunch", BOTH, F_VMX, "\x0f\x01\xc2"),
    UNDEFINED("vmresume", BOTH, F_VMX, "\x0f\x01\xc3"),
    UNDEFINED("vmxoff", BOTH, F_VMX, "\x0f\x01\xc4"),
    UNDEFINED("vmfunc", BOTH, F_VMX, "\x0f\x01\xd4"),
    UNDEFINED("vmread", BOTH, F_VMX, "\x0f\x78\xc0"),
    UNDEFINED("vmwrite", BOTH, F_VMX, "\x0f\x79\xc0"),
    UNDEFINED("vmptrld", BOTH, F_VMX, "\x0f\xc7\x33"),
    UNDEFINED("vmptrst", BOTH, F_VMX, "\x0f\xc7\x3b"),
    UNDEFINED("vmxon", BOTH, F_VMX, "\xf3\x0f\xc7\x33"),
    UNDEFINED("vmclear", BOTH, F_VMX, "\x66\x0f\xc7\x33"),
    UNDEFINED("invept", BOTH, F_VMX, "\x66\x0f\x38\x80\x03"),
    UNDEFINED("invvpid", BOTH, F_VMX, "\x66\x0f\x38\x81\x03"),
    UNDEFINED("vmrun", BOTH, F_SVM, "\x0f\x01\xd8"),
    UNDEFINED("vmmcall", BOTH, F_SVM, "\x0f\x01\xd9"),
    UNDEFINED("vmload", BOTH, F_SVM, "\x0f\x01\xda"),
    UNDEFINED("vmsave", BOTH, F_SVM, "\x0f\x01\xdb"),
    UNDEFINED("stgi", BOTH, F_SVM, "\x0f\x01\xdc"),
    UNDEFINED("clgi", BOTH, F_SVM, "\x0f\x01\xdd"),
    UNDEFINED("skinit", BOTH, F_SVM, "\x0f\x01\xde"),
    UNDEFINED("invlpga", BOTH, F_SVM, "\x0f\x01\xdf"),
    UNDEFINED("getsec", BOTH, F_SMX, "\x0f\x37"),
    UNDEFINED("enclv", BOTH, F_SGX, "\x0f\x01\xc0"),
    UNDEFINED("encls", BOTH, F_SGX, "\x0f\x01\xcf"),
    UNDEFINED("enclu", BOTH, F_SGX, "\x0f\x01\xd7"),
    UNDEFINED("pconfig", BOTH, F_PCONFIG, "\x0f\x01\xc5"),
    UNDEFINED("Virtual PC's 0F 3F 07 0B", BOTH, ALWAYS, "\x0f\x3f\x07\x0b"),
    UNDEFINED("Virtual PC's 0F 3F 01 00", BOTH, ALWAYS, "\x0f\x3f\x01\x00"),
    UNDEFINED("Virtual PC's 0F C7 C8", BOTH, ALWAYS, "\x0f\xc7\xc8\x05\x00"),
    UNDEFINED("VIA's 0F A7 C0", BOTH, ALWAYS, "\x0f\xa7\xc0"),
    UNDEFINED("rsm outside SMM", BOTH, ALWAYS, "\x0f\xaa"),
};

/* Optional instructions that CPUID denies. */
static const struct probe optional[] = {
    UNDEFINED("monitor", BOTH, F_MONITOR, "\x0f\x01\xc8"),
    UNDEFINED("mwait", BOTH, F_MONITOR, "\x0f\x01\xc9"),
    UNDEFINED("clac", BOTH, F_SMAP, "\x0f\x01\xca"),
    UNDEFINED("stac", BOTH, F_SMAP, "\x0f\x01\xcb"),
    UNDEFINED("movbe load", BOTH, F_MOVBE, "\x0f\x38\xf0\x03"),
    UNDEFINED("movbe store", BOTH, F_MOVBE, "\x0f\x38\xf1\x03"),
    UNDEFINED("rdseed", BOTH, F_RDSEED, "\x0f\xc7\xf8"),
    UNDEFINED("rdpid", BOTH, F_RDPID, "\xf3\x0f\xc7\xf8"),
    UNDEFINED("adcx", BOTH, F_ADX, "\x66\x0f\x38\xf6\xc0"),
    UNDEFINED("adox", BOTH, F_ADX, "\xf3\x0f\x38\xf6\xc0"),
    UNDEFINED("sha1nexte", BOTH, F_SHA, "\x0f\x38\xc8\xc0"),
    UNDEFINED("gf2p8mulb", BOTH, F_GFNI, "\x66\x0f\x38\xcf\xc0"),
    UNDEFINED("clflushopt", BOTH, F_CLFLUSHOPT, "\x66\x0f\xae\x3b"),
    UNDEFINED("clwb", BOTH, F_CLWB, "\x66\x0f\xae\x33"),
    UNDEFINED("tpause", BOTH, F_WAITPKG, "\x66\x0f\xae\xf0"),
    UNDEFINED("umonitor", BOTH, F_WAITPKG, "\xf3\x0f\xae\xf0"),
    UNDEFINED("rdpkru", BOTH, F_PKU, "\x0f\x01\xee"),
    UNDEFINED("wrpkru", BOTH, F_PKU, "\x0f\x01\xef"),
    UNDEFINED("serialize", BOTH, F_SERIALIZE, "\x0f\x01\xe8"),
    UNDEFINED("xsusldtrk", BOTH, F_TSXLDTRK, "\xf2\x0f\x01\xe8"),
    UNDEFINED("clui", LONG, F_UINTR, "\xf3\x0f\x01\xee"),
    UNDEFINED("setssbsy", BOTH, F_CET_SS, "\xf3\x0f\x01\xe8"),
    UNDEFINED("movdiri", BOTH, F_MOVDIRI, "\x0f\x38\xf9\x03"),
    UNDEFINED("movdir64b", BOTH, F_MOVDIR64B, "\x66\x0f\x38\xf8\x03"),
    UNDEFINED("enqcmd", BOTH, F_ENQCMD, "\xf2\x0f\x38\xf8\x03"),
    UNDEFINED("xsavec", BOTH, F_XSAVEC, "\x0f\xc7\x23"),
    UNDEFINED("xsaves", BOTH, F_XSAVES, "\x0f\xc7\x2b"),
    UNDEFINED("xrstors", BOTH, F_XSAVES, "\x0f\xc7\x1b"),
    UNDEFINED("xbegin", BOTH, F_RTM, "\xc7\xf8\x00\x00\x00\x00"),
    UNDEFINED("xabort", BOTH, F_RTM, "\xc6\xf8\x00"),
    UNDEFINED("xend", BOTH, F_RTM, "\x0f\x01\xd5"),
    UNDEFINED("xtest", BOTH, F_RTM, "\x0f\x01\xd6"),
    UNDEFINED("vzeroupper", BOTH, F_AVX, "\xc5\xf8\x77"),
    UNDEFINED("andn", BOTH, F_AVX, "\xc4\xe2\x78\xf2\xc0"),
    UNDEFINED("extrq", BOTH, F_SSE4A, "\x66\x0f\x79\xc0"),
    UNDEFINED("movntss", BOTH, F_SSE4A, "\xf3\x0f\x2b\x03"),
    UNDEFINED("femms", BOTH, F_3DNOW, "\x0f\x0e"),
    UNDEFINED("pfmul", BOTH, F_3DNOW, "\x0f\x0f\xc0\xb4"),
    UNDEFINED("clzero", BOTH, F_SVM, "\x0f\x01\xfc"),
    UNDEFINED("rdpru", BOTH, F_SVM, "\x0f\x01\xfd"),
    UNDEFINED("XOP", BOTH, F_SVM, "\x8f\xe8\x78\xa2\xc0\x00"),
    PROBE("xgetbv of register 1", BOTH, GP, GP, F_XGETBV1, "\xb9\x01\x00\x00\x00\x0f\x01\xd0"),
    PROBE("xgetbv of register 2", BOTH, GP, GP, ALWAYS, "\xb9\x02\x00\x00\x00\x0f\x01\xd0"),
};

/* Holes of the opcode map, and forms without a meaning. */
static const struct probe undefined[] = {
    UNDEFINED("ud2", BOTH, ALWAYS, "\x0f\x0b\x90"),
    UNDEFINED("ud1", BOTH, ALWAYS, "\x0f\xb9\xc0"),
    UNDEFINED("ud0", BOTH, ALWAYS, "\x0f\xff\xc0"),
    UNDEFINED("0F 04", BOTH, ALWAYS, "\x0f\x04"),
    UNDEFINED("0F 0A", BOTH, ALWAYS, "\x0f\x0a"),
    UNDEFINED("0F 0C", BOTH, ALWAYS, "\x0f\x0c"),
    UNDEFINED("0F 24", BOTH, ALWAYS, "\x0f\x24\xc0"),
    UNDEFINED("0F 26", BOTH, ALWAYS, "\x0f\x26\xc0"),
    UNDEFINED("0F 36", BOTH, ALWAYS, "\x0f\x36"),
    UNDEFINED("0F 39", BOTH, ALWAYS, "\x0f\x39"),
    UNDEFINED("0F 3E", BOTH, ALWAYS, "\x0f\x3e"),
    UNDEFINED("0F 6C without 66", BOTH, ALWAYS, "\x0f\x6c\xc0"),
    UNDEFINED("0F 7A", BOTH, ALWAYS, "\x0f\x7a\xc0"),
    UNDEFINED("0F A6", BOTH, ALWAYS, "\x0f\xa6\xc0"),
    UNDEFINED("0F D0 without a prefix", BOTH, ALWAYS, "\x0f\xd0\xc0"),
    UNDEFINED("0F 38 FF", BOTH, ALWAYS, "\x0f\x38\xff\xc0"),
    UNDEFINED("0F 3A FF", BOTH, ALWAYS, "\x0f\x3a\xff\xc0\x00"),
    UNDEFINED("0F 00 /6", BOTH, ALWAYS, "\x0f\x00\xf0"),
    UNDEFINED("0F 01 D2", BOTH, ALWAYS, "\x0f\x01\xd2"),
    UNDEFINED("0F BA /0", BOTH, ALWAYS, "\x0f\xba\xc0\x00"),
    UNDEFINED("0F C7 /0", BOTH, ALWAYS, "\x0f\xc7\x03"),
    UNDEFINED("0F AE /4 with a register", BOTH, ALWAYS, "\x0f\xae\xe0"),
    UNDEFINED("8F /1", COMPAT, ALWAYS, "\x8f\x0b"),
    UNDEFINED("C6 /1", BOTH, ALWAYS, "\xc6\xc8\x00"),
    UNDEFINED("FE /2", BOTH, ALWAYS, "\xfe\xd0"),
    UNDEFINED("FF /7", BOTH, ALWAYS, "\xff\xf8"),
    UNDEFINED("far call to a register", BOTH, ALWAYS, "\xff\xd8"),
    UNDEFINED("far jump to a register", BOTH, ALWAYS, "\xff\xe8"),
    UNDEFINED("lea of a register", BOTH, ALWAYS, "\x8d\xc0"),
    UNDEFINED("lss of a register", BOTH, ALWAYS, "\x0f\xb2\xc0"),
    UNDEFINED("mov to cs", BOTH, ALWAYS, "\x8e\xc8"),
    UNDEFINED("mov to segment register 6", BOTH, ALWAYS, "\x8e\xf0"),
    UNDEFINED("mov from segment register 7", BOTH, ALWAYS, "\x8c\xf8"),
    UNDEFINED("mov from cr1", BOTH, ALWAYS, "\x0f\x20\xc8"),
    UNDEFINED("mov to cr5", BOTH, ALWAYS, "\x0f\x22\xe8"),
    UNDEFINED("mov from cr7", BOTH, ALWAYS, "\x0f\x20\xf8"),
    UNDEFINED("mov from cr9", LONG, ALWAYS, "\x44\x0f\x20\xc8"),
    UNDEFINED("mov from cr0 with lock", BOTH, ALWAYS, "\xf0\x0f\x20\xc0"),
    UNDEFINED("lock nop", BOTH, ALWAYS, "\xf0\x90"),
    UNDEFINED("lock mov", BOTH, ALWAYS, "\xf0\x89\x03"),
    UNDEFINED("lock add to a register", BOTH, ALWAYS, "\xf0\x01\xc0"),
    UNDEFINED("lock add from memory", BOTH, ALWAYS, "\xf0\x03\x03"),
    UNDEFINED("lock bt", BOTH, ALWAYS, "\xf0\x0f\xa3\x03"),
    UNDEFINED("lock cmp", BOTH, ALWAYS, "\xf0\x39\x03"),
    UNDEFINED("lock hlt", BOTH, ALWAYS, "\xf0\xf4"),
    UNDEFINED("lock sidt", BOTH, ALWAYS, "\xf0\x0f\x01\x0b"),
    UNDEFINED("lock cpuid", BOTH, ALWAYS, "\xf0\x0f\xa2"),
    UNDEFINED("lock rdtsc", BOTH, ALWAYS, "\xf0\x0f\x31"),
    UNDEFINED("push es", LONG, ALWAYS, "\x06"),
    UNDEFINED("pop ds", LONG, ALWAYS, "\x1f"),
    UNDEFINED("daa", LONG, ALWAYS, "\x27"),
    UNDEFINED("aaa", LONG, ALWAYS, "\x37"),
    UNDEFINED("pusha", LONG, ALWAYS, "\x60"),
    UNDEFINED("popa", LONG, ALWAYS, "\x61"),
    UNDEFINED("alias 82 of group 1", LONG, ALWAYS, "\x82\xc0\x01"),
    UNDEFINED("direct far call", LONG, ALWAYS, "\x9a\x00\x00\x00\x00\x00\x00"),
    UNDEFINED("into", LONG, ALWAYS, "\xce"),
    UNDEFINED("aam", LONG, ALWAYS, "\xd4\x0a"),
    UNDEFINED("salc", LONG, ALWAYS, "\xd6"),
    UNDEFINED("direct far jump", LONG, ALWAYS, "\xea\x00\x00\x00\x00\x00\x00"),
    UNDEFINED("rdfsbase", COMPAT, ALWAYS, "\xf3\x0f\xae\xc0"),
    UNDEFINED("swapgs", COMPAT, ALWAYS, "\x0f\x01\xf8"),
    UNDEFINED("syscall", COMPAT, F_SVM, "\x0f\x05"),
};

/* Privileged and sensitive instructions. Without UMIP, those that store descriptor tables and CR0 run in any ring. */
static const struct probe privileged[] = {
    PRIVILEGED("hlt", BOTH, SKIP, "\xf4"),
    PRIVILEGED("cli", BOTH, DONE, "\xfa"),
    PRIVILEGED("sti", BOTH, DONE, "\xfb"),
    PRIVILEGED("in al, 80h", BOTH, DONE, "\xe4\x80"),
    PRIVILEGED("out 80h, al", BOTH, DONE, "\xe6\x80"),
    PRIVILEGED("in eax, dx of VMware's port", BOTH, DONE,
               "\xb8\x68\x58\x4d\x56\xb9\x0a\x00\x00\x00\xba\x58\x56\x00\x00\xed"),
    PRIVILEGED("rep outsb to VMware's port", BOTH, DONE,
               "\xb8\x68\x58\x4d\x56\xb9\x01\x00\x00\x00\xba\x59\x56\x00\x00\xf3\x6e"),
    PRIVILEGED("lgdt", BOTH, SKIP, "\x0f\x01\x13"),
    PRIVILEGED("lidt", BOTH, SKIP, "\x0f\x01\x1b"),
    PRIVILEGED("lldt", BOTH, DONE, "\x0f\x00\xd0"),
    PRIVILEGED("ltr of null", BOTH, GP, "\x0f\x00\xd8"),
    PRIVILEGED("lmsw", BOTH, SKIP, "\x0f\x01\xf0"),
    PRIVILEGED("clts", BOTH, DONE, "\x0f\x06"),
    PRIVILEGED("mov from cr0", BOTH, DONE, "\x0f\x20\xc0"),
    PRIVILEGED("mov to cr0", BOTH, SKIP, "\x0f\x22\xc0"),
    PRIVILEGED("mov from cr4", BOTH, DONE, "\x0f\x20\xe0"),
    PRIVILEGED("mov from cr8", LONG, DONE, "\x44\x0f\x20\xc0"),
    PRIVILEGED("mov from dr0", BOTH, DONE, "\x0f\x21\xc0"),
    PRIVILEGED("mov from dr7", BOTH, DONE, "\x0f\x21\xf8"),
    PRIVILEGED("invd", BOTH, SKIP, "\x0f\x08"),
    PRIVILEGED("wbinvd", BOTH, DONE, "\x0f\x09"),
    PRIVILEGED("invlpg", BOTH, DONE, "\x0f\x01\x3b"),
    PRIVILEGED("rdmsr of the counter", BOTH, DONE, "\xb9\x10\x00\x00\x00\x0f\x32"),
    PRIVILEGED("wrmsr", BOTH, SKIP, "\xb9\x10\x00\x00\x00\x0f\x30"),
    PRIVILEGED("sysexit", BOTH, GP, "\x0f\x35"),
    PRIVILEGED("sysret", LONG, SKIP, "\x0f\x07"),
    PRIVILEGED("swapgs", LONG, DONE, "\x0f\x01\xf8"),
    PRIVILEGED("xsetbv", BOTH, SKIP, "\x0f\x01\xd1"),
    PRIVILEGED("rdpmc", BOTH, SKIP, "\x0f\x33"),
    PROBE("sidt", BOTH, DONE, DONE, F_UMIP, "\x0f\x01\x0b"),
    PROBE("sgdt", BOTH, DONE, DONE, F_UMIP, "\x0f\x01\x03"),
    PROBE("sldt", BOTH, DONE, DONE, F_UMIP, "\x0f\x00\xc0"),
    PROBE("str", BOTH, DONE, DONE, F_UMIP, "\x0f\x00\xc8"),
    PROBE("smsw", BOTH, DONE, DONE, F_UMIP, "\x0f\x01\xe0"),
    HARMLESS("rdtsc", BOTH, "\x0f\x31"),
    HARMLESS("rdtscp", BOTH, "\x0f\x01\xf9"),
    HARMLESS("rdfsbase", LONG, "\xf3\x48\x0f\xae\xc0"),
};

/* Exceptions with their error codes. */
static const struct probe faults[] = {
    PROBE("iret to a null selector", BOTH, GP, GP, ALWAYS, "\xcf"),
    PROBE("far return to a null selector", BOTH, GP, GP, ALWAYS, "\xcb"),
    PROBE("int 13 through a gate of ring 0", BOTH, SKIP, ERROR(GP, 0x6a), ALWAYS, "\xcd\x0d"),
    PROBE("int 29h through a gate of ring 0", BOTH, 0x29, ERROR(GP, 0x14a), ALWAYS, "\xcd\x29"),
    PROBE("int3", BOTH, BP, BP, ALWAYS, "\xcc"),
    PROBE("int 3 of two bytes", BOTH, BP, BP, ALWAYS, "\xcd\x03"),
    PROBE("int1", BOTH, DB, DB, ALWAYS, "\xf1"),
    PROBE("into after an overflow", COMPAT, OF, OF, ALWAYS, "\xb0\x7f\x04\x01\xce"),
    PROBE("bound outside", COMPAT, BR, BR, ALWAYS, "\xb8\x05\x00\x00\x00\x62\x03"),
    PROBE("div by zero", BOTH, DE, DE, ALWAYS, "\xf7\xf1"),
    PROBE("idiv that overflows", BOTH, DE, DE, ALWAYS, "\xb8\x00\x00\x00\x80\x99\xb9\xff\xff\xff\xff\xf7\xf9"),
    PROBE("aam by zero", COMPAT, DE, DE, ALWAYS, "\xd4\x00"),
    PROBE("ds beyond the table", BOTH, ERROR(GP, 0x7230), ERROR(GP, 0x7230), ALWAYS, "\xb8\x33\x72\x00\x00\x8e\xd8"),
    PROBE("es from no local table", BOTH, ERROR(GP, 0x14), ERROR(GP, 0x14), ALWAYS, "\xb8\x17\x00\x00\x00\x8e\xc0"),
    PROBE("null ss", COMPAT, GP, GP, ALWAYS, "\x31\xc0\x8e\xd0"),
    PROBE("null ss in 64-bit code", LONG, SKIP, GP, ALWAYS, "\x31\xc0\x8e\xd0"),
    PROBE("pop of a bad fs", BOTH, ERROR(GP, 0x7230), ERROR(GP, 0x7230), ALWAYS, "\x68\x32\x72\x00\x00\x0f\xa1"),
    PROBE("load that is not canonical", LONG, GP, GP, ALWAYS, "\x48\xb8\x00\x00\x00\x00\x00\x80\x00\x00\x8a\x00"),
    PROBE("stack load that is not canonical", LONG, SS, SS, ALWAYS, "\x48\xbd\x00\x00\x00\x00\x00\x80\x00\x00\x8a\x45\x00"),
    PROBE("jump that is not canonical", LONG, GP, GP, ALWAYS, "\x48\xb8\x00\x00\x00\x00\x00\x80\x00\x00\xff\xe0"),
    PROBE("misaligned movaps", BOTH, GP, GP, ALWAYS, "\x0f\x28\x43\x01"),
    PROBE("misaligned cmpxchg16b", LONG, GP, GP, ALWAYS, "\x48\x0f\xc7\x4b\x08"),
    PROBE("misaligned fxsave", BOTH, GP, GP, ALWAYS, "\x0f\xae\x43\x01"),
    PROBE("ldmxcsr of a reserved bit", BOTH, GP, GP, ALWAYS, "\xc7\x03\x80\x1f\x01\x00\x0f\xae\x13"),
    PROBE("15 bytes", BOTH, DONE, DONE, ALWAYS,
          "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"),
    PROBE("16 bytes", BOTH, GP, GP, ALWAYS, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"),
    PROBE("16 bytes that end in an immediate", BOTH, GP, GP, ALWAYS,
          "\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x2e\x81\xc0\x01\x00\x00\x00"),
    PROBE("ud2 of 15 bytes", BOTH, UD, UD, ALWAYS, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x0f\x0b\x90"),
    PROBE("ud2 of 16 bytes", BOTH, GP, GP, ALWAYS, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x0f\x0b"),
};

/* Encodings that all processors take though hardly any assembler makes them. */
static const struct probe harmless[] = {
    HARMLESS("hinting nops", BOTH, "\x0f\x18\x03\x0f\x19\x03\x0f\x1a\x03\x0f\x1d\x03\x0f\x1f\x03"),
    HARMLESS("endbr64 and rdssp as nops", BOTH, "\xf3\x0f\x1e\xfa\xf3\x0f\x1e\xc8"),
    HARMLESS("prefetchw", BOTH, "\x0f\x0d\x0b"),
    HARMLESS("test alias F6 /1", BOTH, "\xf6\xc8\x01"),
    HARMLESS("shl alias C0 /6", BOTH, "\xc0\xf0\x01"),
    HARMLESS("lfence alias", BOTH, "\x0f\xae\xe9"),
    HARMLESS("repeated prefixes", BOTH, "\xf2\xf3\x2e\x3e\x90"),
    HARMLESS("tzcnt encoding", BOTH, "\xf3\x0f\xbc\xc0"),
    HARMLESS("lzcnt encoding", BOTH, "\xf3\x0f\xbd\xc0"),
    HARMLESS("fnop, feni, fdisi, fsetpm", BOTH, "\xd9\xd0\xdb\xe0\xdb\xe1\xdb\xe4"),
    HARMLESS("aliases of fcom, fcomp, fxch and fstp", BOTH,
             "\xdb\xe3\xd9\xe8\xd9\xe8\xdc\xd0\xdd\xc8\xdf\xc8\xdc\xd8\xd9\xe8\xd9\xd8\xd9\xe8\xdf\xd0\xd9\xe8\xdf\xd8\xdb\xe3"),
    HARMLESS("ffreep", BOTH, "\xdb\xe3\xd9\xe8\xdf\xc0\xdb\xe3"),
    HARMLESS("salc", COMPAT, "\xd6"),
    HARMLESS("alias 82 of group 1", COMPAT, "\x82\xc0\x01"),
    HARMLESS("bound inside", COMPAT, "\x62\x03"),
    HARMLESS("arpl", COMPAT, "\x63\xc0"),
};

static void try_probe(const struct probe *probe, enum mode mode)
{
    uint32_t expected = is_ring3(mode) ? probe->ring3 : probe->ring0;
    if (!offers(mode) || expected == SKIP || !(probe->widths & (is_64(mode) ? LONG : COMPAT))) {
        return;
    }
    struct state state = fresh_state();
    fill(room.data, 0, 0x1000);
    run(mode, &state, probe->code, probe->length);
    bool good = state.vector == (expected & 0xffff) && (state.vector == DONE || state.error == expected >> 16);
    check(good, "%s (%s)", probe->name, mode_names[mode]);
    detail_state(&state);
}

static void try_all(const struct probe *probes, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (probes[i].unless != ALWAYS && has_feature(probes[i].unless)) {
            continue;
        }
        for (enum mode mode = 0; mode < MODES; mode++) {
            try_probe(&probes[i], mode);
        }
    }
}

void check_opcodes(void)
{
#define ALL(table) try_all(table, sizeof table / sizeof *table)
    ALL(virtualization);
    ALL(optional);
    ALL(undefined);
    ALL(privileged);
    ALL(faults);
    ALL(harmless);
}
