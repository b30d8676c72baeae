// SPDX-License-Identifier: GPL-2.0-only
/*
 * svadev: when an address space dies.
 *
 * An mmu notifier of our own in each address space that is bound, one for all functions. Its release
 * comes when the last user of the address space is gone, in the same walk over the list as that of
 * the IOMMU driver, in whatever order. The whole walk is one SRCU read section, so after
 * mmu_notifier_synchronize() the IOMMU driver's is over, too.
 */
#include <linux/mmu_notifier.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "svadev.h"

static struct mmu_notifier *alloc_notifier(struct mm_struct *mm)
{
	struct svadev_mm *smm = kzalloc(sizeof(*smm), GFP_KERNEL_ACCOUNT);

	if (!smm)
		return ERR_PTR(-ENOMEM);
	spin_lock_init(&smm->lock);
	INIT_LIST_HEAD(&smm->contexts);
	init_waitqueue_head(&smm->wait);
	return &smm->notifier;
}

static void free_notifier(struct mmu_notifier *notifier)
{
	kfree(container_of(notifier, struct svadev_mm, notifier));
}

static void release(struct mmu_notifier *notifier, struct mm_struct *mm)
{
	struct svadev_mm *smm = container_of(notifier, struct svadev_mm, notifier);
	struct svadev_context *context;

	WRITE_ONCE(smm->dead, true);
	wake_up_all(&smm->wait);
	/* Who polls an idle context hears of it here only. */
	spin_lock(&smm->lock);
	list_for_each_entry(context, &smm->contexts, mm_node)
		wake_up_all(&context->wait);
	spin_unlock(&smm->lock);
}

static const struct mmu_notifier_ops svadev_mm_ops = {
	.alloc_notifier = alloc_notifier,
	.free_notifier = free_notifier,
	.release = release,
};

/**
 * svadev_mm_get() - our notifier in the caller's address space
 *
 * Context: process; takes mmap_lock for writing.
 * Return: it, with one more reference; -ENOMEM; -ERESTARTSYS killed.
 */
struct svadev_mm *svadev_mm_get(void)
{
	struct mm_struct *mm = current->mm;
	struct mmu_notifier *notifier;

	/* A page that does not come holds the lock: whoever waits here can be killed. */
	if (mmap_write_lock_killable(mm))
		return ERR_PTR(-ERESTARTSYS);
	notifier = mmu_notifier_get_locked(&svadev_mm_ops, mm);
	mmap_write_unlock(mm);
	return IS_ERR(notifier) ? ERR_CAST(notifier) :
				  container_of(notifier, struct svadev_mm, notifier);
}

/**
 * svadev_mm_put() - undo svadev_mm_get()
 * @smm: it
 *
 * The mm_struct lives until the last reference is gone.
 *
 * Context: process.
 */
void svadev_mm_put(struct svadev_mm *smm)
{
	mmu_notifier_put(&smm->notifier);
}

/**
 * svadev_mm_add() - wake a context when the address space dies
 * @smm: the address space
 * @context: it
 *
 * Context: process.
 */
void svadev_mm_add(struct svadev_mm *smm, struct svadev_context *context)
{
	spin_lock(&smm->lock);
	list_add(&context->mm_node, &smm->contexts);
	spin_unlock(&smm->lock);
}

/**
 * svadev_mm_del() - undo svadev_mm_add()
 * @smm: the address space
 * @context: it
 *
 * Context: process.
 */
void svadev_mm_del(struct svadev_mm *smm, struct svadev_context *context)
{
	spin_lock(&smm->lock);
	list_del(&context->mm_node);
	spin_unlock(&smm->lock);
}

/**
 * svadev_mm_hold() - keep the address space from dying, or wait until it is dead
 * @smm: the address space
 * @held: set if the caller must mmput_async()
 *
 * Linux 7.3 tears the PASID entry down in the mmu_notifier's release and in unbind, and does the
 * longer part of it without a lock: whoever comes second while the first is at it finds an entry
 * that is not present and not zero either, and warns. Worse, a release that comes second returns
 * while unbind's invalidations are under way, and page tables are freed under a walk. It happens
 * when the process that exits is not the last to use its address space: a page request's worker may
 * be.
 *
 * Context: process; sleeps, at most SVADEV_MM_DEATH_TIMEOUT: what the kernel does between the last user's
 * end and the release may wait for others (exit_aio()).
 * Return: 0; -ETIMEDOUT it is dying and not dead: try again later.
 */
int svadev_mm_hold(struct svadev_mm *smm, bool *held)
{
	*held = mmget_not_zero(smm->notifier.mm);
	if (*held)
		return 0;
	if (!wait_event_timeout(smm->wait, READ_ONCE(smm->dead), SVADEV_MM_DEATH_TIMEOUT))
		return -ETIMEDOUT;
	mmu_notifier_synchronize();
	return 0;
}
