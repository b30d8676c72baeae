// SPDX-License-Identifier: GPL-2.0-only
/*
 * svadev: a mistake on purpose, for tests of those who look for mistakes.
 *
 * A kernel that changes a page table and forgets to tell the IOMMU is what svadev's auditor looks
 * for. Here is such a change. It is refused unless the module was loaded with plant=1.
 */
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/smp.h>

#include <asm/cpufeature.h>
#include <asm/invpcid.h>
#include <asm/special_insns.h>

#include "svadev.h"

struct swap {
	pte_t *first;
};

/* Drops what this CPU's TLB holds of user space. No mmu notifier hears of it. */
static void flush_this_cpu(void *unused)
{
	if (boot_cpu_has(X86_FEATURE_INVPCID))
		invpcid_flush_all();
	else
		native_write_cr3(__native_read_cr3());
}

/* Called for two entries of one table, with its lock held throughout. */
static int swap_entries(pte_t *pte, unsigned long addr, void *data)
{
	struct swap *swap = data;
	pte_t first, second;

	if (!pte_present(ptep_get(pte)))
		return -EFAULT;
	if (!swap->first) {
		swap->first = pte;
		return 0;
	}
	/* Taken out first: a CPU or the IOMMU may be about to set accessed or dirty. */
	first = native_ptep_get_and_clear(swap->first);
	second = native_ptep_get_and_clear(pte);
	native_set_pte(swap->first, second);
	native_set_pte(pte, first);
	return 0;
}

/**
 * svadev_plant_swap() - exchange two neighbouring pages of the caller behind the IOMMU's back
 * @address: of the first
 *
 * Both are in one anonymous mapping, so whoever frees or migrates them finds them as if they had
 * been put there by faults in another order; rmap walks do not find them where they look, and leave
 * them alone. The mapping must be VM_NOHUGEPAGE, since the walk does not do huge pages.
 *
 * Context: process; takes mmap_lock for writing.
 * Return: 0; -EINVAL not such a mapping, or the two entries are in different tables; -EFAULT one of
 * the two is not present; -EOPNOTSUPP this CPU's TLB cannot be flushed from here; -ERESTARTSYS.
 */
int svadev_plant_swap(unsigned long address)
{
	struct mm_struct *mm = current->mm;
	struct swap swap = {};
	struct vm_area_struct *vma;
	int err = -EINVAL;

	if (boot_cpu_has(X86_FEATURE_PCID) && !boot_cpu_has(X86_FEATURE_INVPCID))
		return -EOPNOTSUPP;
	if (!PAGE_ALIGNED(address) || pmd_index(address) != pmd_index(address + PAGE_SIZE))
		return -EINVAL;
	if (mmap_write_lock_killable(mm))
		return -ERESTARTSYS;
	vma = vma_lookup(mm, address);
	if (vma && vma_is_anonymous(vma) && (vma->vm_flags & VM_NOHUGEPAGE) &&
	    vma->vm_end - address >= 2 * PAGE_SIZE) {
		err = apply_to_page_range(mm, address, 2 * PAGE_SIZE, swap_entries, &swap);
		on_each_cpu(flush_this_cpu, NULL, 1);
	}
	mmap_write_unlock(mm);
	return err;
}
