/* Names by which virtual machines give themselves away in strings and numbers. */

#include "detect.h"

/* As they stand in tables, ROMs and identification strings; compared without regard to case. */
static const char *const products[] = {
    "QEMU",        "BOCHS",      "SeaBIOS",    "VMware",      "VMW",        "VirtualBox", "VBOX",      "innotek",
    "Oracle",      "Xen",        "KVM",        "TCGTCG",      "Parallels",  "prl hyperv", "PRLS",      "lrpepyh",
    "Microsoft Hv", "Hyper-V",   "VRTUAL",     "Virtual",     "bhyve",      "BHYVE",      "OpenBSDVMM", "ACRN",
    "Jailhouse",   "UnisysSpar", "SRESRESRE",  "EVMM",        "Amazon",     "Google Compute", "OpenStack", "Nutanix",
    "Firecracker", "crosvm",     "Cloud Hypervisor", "CLOUDHYP", "TianoCore", "EDK II",   "OVMF",      "WAET",
    "VMBUS",       "MSFT1000",   "LNRO0005",   "XENBUS",      "hypervisor", "emulat",     "trapgate",  "BXPC",
};

enum { PRODUCTS = sizeof products / sizeof *products };

static uint8_t lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c;
}

static bool stands_at(const uint8_t *bytes, const char *name, size_t room)
{
    for (size_t i = 0; name[i] != 0; i++) {
        if (i == room || lower(bytes[i]) != lower((uint8_t)name[i])) {
            return false;
        }
    }
    return true;
}

const char *product_name(const uint8_t *bytes, size_t length, size_t *where)
{
    /* Most memory is looked at for the first letter alone. */
    bool begins[256] = {false};
    for (size_t n = 0; n < PRODUCTS; n++) {
        begins[lower((uint8_t)*products[n])] = true;
    }
    for (size_t at = 0; at < length; at++) {
        for (size_t n = 0; n < PRODUCTS && begins[lower(bytes[at])]; n++) {
            if (stands_at(bytes + at, products[n], length - at)) {
                if (where != NULL) {
                    *where = at;
                }
                return products[n];
            }
        }
    }
    return NULL;
}

const char *virtual_pci_vendor(uint32_t vendor)
{
    static const struct {
        uint16_t number;
        const char *name;
    } vendors[] = {
        {0x1af4, "virtio"},    {0x1b36, "QEMU"},      {0x1234, "Bochs"},   {0x15ad, "VMware"}, {0x80ee, "VirtualBox"},
        {0x5853, "Xen"},       {0xfffd, "Xen"},       {0x1414, "Hyper-V"}, {0x1ab8, "Parallels"}, {0xfb5d, "bhyve"},
        {0x1d0f, "Amazon"},    {0x1ae0, "Google"},    {0x1110, "Jailhouse"},
    };
    for (size_t n = 0; n < sizeof vendors / sizeof *vendors; n++) {
        if (vendors[n].number == vendor) {
            return vendors[n].name;
        }
    }
    return NULL;
}
