/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * svadev: what older kernels lack or call otherwise. From 6.1 on; ci/old-kernels compiles it.
 *
 * Below 6.19 there is no SVA here: the kernels that have it on x86 begin there, and the calls were others
 * before. BIND gives EOPNOTSUPP; what needs no binding works.
 */
#ifndef _SVADEV_COMPAT_H
#define _SVADEV_COMPAT_H

#include <linux/err.h>
#include <linux/eventfd.h>
#include <linux/iommu.h>
#include <linux/mm.h>
#include <linux/pci.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
#define svadev_sva_bind(dev, mm) iommu_sva_bind_device(dev, mm)
#define svadev_sva_pasid(handle) iommu_sva_get_pasid(handle)
#define svadev_sva_unbind(handle) iommu_sva_unbind_device(handle)
#else
static inline struct iommu_sva *svadev_sva_bind(struct device *dev, struct mm_struct *mm)
{
	return ERR_PTR(-EOPNOTSUPP);
}

static inline u32 svadev_sva_pasid(struct iommu_sva *handle)
{
	return 0;
}

static inline void svadev_sva_unbind(struct iommu_sva *handle)
{
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 13, 0)
static inline int copy_struct_to_user(void __user *dst, size_t usize, const void *src, size_t ksize,
				      bool *ignored_trailing)
{
	size_t size = min(ksize, usize);

	if (usize > ksize && clear_user(dst + size, usize - size))
		return -EFAULT;
	if (ignored_trailing)
		*ignored_trailing = usize < ksize && memchr_inv(src + size, 0, ksize - size);
	return copy_to_user(dst, src, size) ? -EFAULT : 0;
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
static inline void __iomem *pcim_iomap_region(struct pci_dev *pdev, int bar, const char *name)
{
	int err = pcim_iomap_regions(pdev, BIT(bar), name);

	return err ? IOMEM_ERR_PTR(err) : pcim_iomap_table(pdev)[bar];
}
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 8, 0)
#define eventfd_signal(eventfd) eventfd_signal(eventfd, 1)
#endif

/* A class is constant, and so is what its callback is given. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
#define SVADEV_CLASS_CONST
#else
#define SVADEV_CLASS_CONST const
#endif
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define SVADEV_DEVNODE_CONST
#else
#define SVADEV_DEVNODE_CONST const
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 3, 0)
static inline void vm_flags_mod(struct vm_area_struct *vma, vm_flags_t set, vm_flags_t clear)
{
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
}
#endif

#endif /* _SVADEV_COMPAT_H */
