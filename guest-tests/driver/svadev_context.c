// SPDX-License-Identifier: GPL-2.0-only
/*
 * svadev: contexts: bind, drain, unbind.
 *
 * The order, and why (docs/driver.md has the table of lifetimes):
 *
 *  1. Bind: the SVA core writes the PASID entry before any descriptor can name the PASID.
 *  2. Run: only the address space that bound may submit.
 *  3. Stop: clear @accepting under the device's lock, and destroy the user queues, whose submissions
 *     nobody can refuse. From then on nothing new comes, so what follows ends.
 *  4. Drain: abort the PASID on the device if nobody else uses it, and wait until each descriptor
 *     has its completion. Only then does iommu_sva_unbind_device()'s condition hold: the device
 *     issues no more transactions for the PASID, and its page requests have been pushed to the
 *     IOMMU.
 *  5. Unbind: the SVA core clears the PASID entry if this was the last handle, flushes caches,
 *     drains page requests.
 *  6. Forget: drop the mm_struct, free the bond. Only now may the PASID be given to another address
 *     space.
 *
 * Death of the address space comes between 2 and 3 without telling us: the IOMMU driver's
 * mmu_notifier release clears the PASID entry and flushes (rule L4). Work in flight then ends in
 * translation faults; the handle stays, stale, until 5. No notifier of our own is needed for that,
 * and so none can race with unbind (rules L11, L12). The IOMMU driver's own does, if the address
 * space dies just then: hold_mm() keeps the two apart.
 */
#include <linux/delay.h>
#include <linux/iommu.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "svadev.h"

/**
 * svadev_enter() - get access to the hardware
 * @sdev: device
 * @nonblock: do not wait for the end of a reset
 *
 * Context: process, may sleep; interruptible.
 * Return: 0 with @gate held for reading and the state SVADEV_RUNNING: give it back with
 * svadev_leave(). Else -EINTR, -EAGAIN (reset under way), -EIO, -ENODEV.
 */
int svadev_enter(struct svadev_device *sdev, bool nonblock)
{
	for (;;) {
		enum svadev_state state;

		if (down_read_interruptible(&sdev->gate))
			return -EINTR;
		state = sdev->state;
		if (state == SVADEV_RUNNING)
			return 0;
		up_read(&sdev->gate);

		if (state == SVADEV_GONE)
			return -ENODEV;
		if (state == SVADEV_FAILED)
			return -EIO;
		if (nonblock)
			return -EAGAIN;
		if (wait_event_interruptible(sdev->state_wait,
					     READ_ONCE(sdev->state) != SVADEV_RESETTING))
			return -EINTR;
	}
}

/**
 * svadev_leave() - undo svadev_enter()
 * @sdev: device
 */
void svadev_leave(struct svadev_device *sdev)
{
	up_read(&sdev->gate);
}

/**
 * svadev_context_create() - a context for a new open file
 * @sdev: device
 * @mapping: the file's
 *
 * Context: open; may sleep.
 * Return: the context, which holds a reference to the device; -ENOMEM; -ENODEV if the device is
 * gone.
 */
struct svadev_context *svadev_context_create(struct svadev_device *sdev,
					     struct address_space *mapping)
{
	struct svadev_context *context = kzalloc(sizeof(*context), GFP_KERNEL_ACCOUNT);

	if (!context)
		return ERR_PTR(-ENOMEM);
	mutex_init(&context->mutex);
	INIT_LIST_HEAD(&context->in_flight);
	INIT_LIST_HEAD(&context->done);
	INIT_LIST_HEAD(&context->user_queues);
	context->mapping = mapping;
	init_waitqueue_head(&context->wait);

	guard(mutex)(&sdev->contexts_lock);
	/*
	 * Remove sets the state first and then takes the lock, to evict all it finds: a context
	 * comes before that or not at all.
	 */
	if (READ_ONCE(sdev->state) == SVADEV_GONE) {
		kfree(context);
		return ERR_PTR(-ENODEV);
	}
	get_device(&sdev->dev);
	context->sdev = sdev;
	list_add_tail(&context->node, &sdev->contexts);
	return context;
}

/* The bond of a PASID with one more context in it, or a new one. */
static struct svadev_bond *bond_get(struct svadev_device *sdev, u32 pasid)
{
	struct svadev_bond *bond;

	lockdep_assert_held(&sdev->bonds_lock);

	list_for_each_entry(bond, &sdev->bonds, node)
		if (bond->pasid == pasid)
			goto found;
	bond = kzalloc(sizeof(*bond), GFP_KERNEL_ACCOUNT);
	if (!bond)
		return NULL;
	bond->pasid = pasid;
	list_add(&bond->node, &sdev->bonds);
found:
	bond->active++;
	bond->holders++;
	return bond;
}

static void bond_put(struct svadev_device *sdev, struct svadev_bond *bond)
{
	guard(mutex)(&sdev->bonds_lock);
	if (--bond->holders)
		return;
	WARN_ON(bond->active);
	list_del(&bond->node);
	kfree(bond);
}

/**
 * svadev_context_bind() - bind the caller's address space
 * @context: context
 * @nonblock: do not wait for the end of a reset
 *
 * The SVA core wants a reference to mm_users for the call. current holds one for its own mm until
 * it exits, and does not exit in here. Afterwards it is the core's handle that keeps the mm_struct,
 * not its pages: those may go any time, and the IOMMU driver's notifier then takes the PASID entry
 * away first (rule L9). Our own mmgrab() only keeps the pointer from being reused.
 *
 * Context: process; may sleep, interruptible.
 * Return: 0; -EBUSY if bound; what svadev_enter() or iommu_sva_bind_device() says.
 */
int svadev_context_bind(struct svadev_context *context, bool nonblock)
{
	struct svadev_device *sdev = context->sdev;
	struct svadev_bond *bond = NULL;
	struct iommu_sva *handle;
	int err = 0;
	u32 pasid;

	if (mutex_lock_interruptible(&context->mutex))
		return -EINTR;
	if (context->handle) {
		err = -EBUSY;
		goto unlock_context;
	}
	/*
	 * Across the bind and the count: a context that unbinds the same PASID either sees us in
	 * the bond and does not abort, or has finished aborting before we can submit.
	 */
	mutex_lock(&sdev->bonds_lock);
	err = svadev_enter(sdev, nonblock);
	if (err)
		goto unlock_bonds;
	handle = iommu_sva_bind_device(&sdev->pdev->dev, current->mm);
	if (IS_ERR(handle)) {
		err = PTR_ERR(handle);
		goto leave;
	}
	pasid = iommu_sva_get_pasid(handle);
	if (pasid & ~SVADEV_DESC_PASID_MASK)
		err = -EOVERFLOW;
	else
		bond = bond_get(sdev, pasid);
	if (!bond) {
		iommu_sva_unbind_device(handle);
		err = err ?: -ENOMEM;
		goto leave;
	}
	context->handle = handle;
	context->bond = bond;
	mmgrab(current->mm);
	scoped_guard(spinlock_irq, &sdev->lock) {
		context->mm = current->mm;
		context->pasid = pasid;
		context->accepting = true;
	}
leave:
	svadev_leave(sdev);
unlock_bonds:
	mutex_unlock(&sdev->bonds_lock);
unlock_context:
	mutex_unlock(&context->mutex);
	return err;
}

/*
 * Whether the context's work ended within a time. Not interruptible: who closes or unbinds cannot
 * come back to try again.
 */
static bool wait_idle(struct svadev_context *context, unsigned int timeout_ms)
{
	return wait_event_timeout(context->wait, !READ_ONCE(context->in_flight_count),
				  msecs_to_jiffies(timeout_ms));
}

/* Aborts a PASID, if there is hardware to speak to; if not, nothing is in flight. */
static void abort_pasid(struct svadev_device *sdev, u32 pasid)
{
	down_read(&sdev->gate);
	if (sdev->state == SVADEV_RUNNING) {
		svadev_hw_abort_pasid(sdev, pasid);
		svadev_queue_poll(sdev);
	}
	up_read(&sdev->gate);
}

/*
 * Steps 3 and 4: afterwards nothing of this context is in flight.
 *
 * The device aborts by PASID, and other contexts of the same address space may use that PASID here.
 * So only the last one that stops aborts. One that stops earlier waits for its own work: that ends
 * by itself, for the device answers a missing page with an error after its own timeout. If it does
 * not within drain_timeout_ms, the PASID is aborted at the others' expense: they are the same
 * program, and a wait without end would be worse (rule L7). If even that does not help, the
 * function is restarted, at everyone's expense.
 */
static void stop_and_drain(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;
	unsigned int starts = READ_ONCE(sdev->starts);
	u32 pasid = context->pasid;

	lockdep_assert_held(&context->mutex);

	scoped_guard(spinlock_irq, &sdev->lock)
		context->accepting = false;
	/* Submitters that wait for room must see that none will come for them. */
	wake_up_all(&context->wait);
	wake_up_all(&sdev->room_wait);
	/* New ones need the context's mutex, which is ours, and @accepting. */
	svadev_user_queue_destroy_all(context);

	if (context->bond) {
		guard(mutex)(&sdev->bonds_lock);
		if (--context->bond->active == 0)
			abort_pasid(sdev, pasid);
	}
	if (wait_idle(context, svadev_drain_timeout_ms))
		return;

	dev_warn(&sdev->dev, "PASID %u: %u descriptors still in flight after %u ms\n", pasid,
		 READ_ONCE(context->in_flight_count), svadev_drain_timeout_ms);
	if (context->bond)
		abort_pasid(sdev, pasid);
	if (wait_idle(context, svadev_command_timeout_ms))
		return;
	svadev_queue_restart(sdev, starts, "work does not end");
	/*
	 * A restart, a reset or remove have completed everything: nothing is in flight in another
	 * state, or from an earlier start.
	 */
	WARN_ON(!wait_idle(context, svadev_command_timeout_ms));
}

/* How long the death of an address space may take before an unbind goes on beside it. */
#define MM_DEATH_TIMEOUT_US	(10 * USEC_PER_SEC)
#define MM_DEATH_PERIOD_US	100

/*
 * Keep the address space from dying, or wait until it is dead.
 *
 * Linux 7.3 tears the PASID entry down in the mmu_notifier's release and in unbind, and does the
 * longer part of it without a lock: whoever comes second while the first is at it finds an entry
 * that is not present and not zero either, and warns. It happens when the process that exits is not
 * the last to use its address space: a page request's worker may be.
 *
 * Return: true if the caller must mmput_async().
 */
static bool hold_mm(struct mm_struct *mm)
{
	unsigned int waited;

	if (mmget_not_zero(mm))
		return true;
	/* exit_mmap() sets it after the notifiers' release. Without any mapping it never does. */
	for (waited = 0; waited < MM_DEATH_TIMEOUT_US; waited += MM_DEATH_PERIOD_US) {
		if (mm_flags_test(MMF_OOM_SKIP, mm))
			break;
		fsleep(MM_DEATH_PERIOD_US);
	}
	return false;
}

/* Steps 3 to 6. */
static void unbind_locked(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;
	struct mm_struct *mm = context->mm;
	bool held;

	lockdep_assert_held(&context->mutex);

	stop_and_drain(context);
	held = hold_mm(mm);
	/*
	 * The handle needs the PCI device and its group. Both live: remove takes this context's
	 * mutex to unbind it before it lets them go, and clears the handle.
	 */
	iommu_sva_unbind_device(context->handle);
	context->handle = NULL;
	bond_put(sdev, context->bond);
	context->bond = NULL;
	scoped_guard(spinlock_irq, &sdev->lock) {
		context->mm = NULL;
		context->pasid = 0;
	}
	/* Not here: if this is the last user, its mappings of our queues go away with it. */
	if (held)
		mmput_async(mm);
	mmdrop(mm);
}

/**
 * svadev_context_mm_dead() - has the address space that bound gone
 * @context: context
 *
 * Context: svadev_device.lock held.
 * Return: true if the context is bound to an address space without users.
 */
bool svadev_context_mm_dead(struct svadev_context *context)
{
	lockdep_assert_held(&context->sdev->lock);

	/* The structure lives by our mmgrab(). Once mm_users is 0 it stays 0. */
	return context->mm && !atomic_read(&context->mm->mm_users);
}

/**
 * svadev_context_may_end() - check the caller's right to end what a context has: its binding, a queue
 * @context: context
 *
 * Context: the caller's process, svadev_device.lock not held.
 * Return: true for the address space that bound, and for anybody once that is dead.
 */
bool svadev_context_may_end(struct svadev_context *context)
{
	guard(spinlock_irq)(&context->sdev->lock);
	return context->mm == current->mm || svadev_context_mm_dead(context);
}

/**
 * svadev_context_may_submit() - check the caller's right to submit with the context's PASID
 * @context: context
 *
 * Context: the caller's process, svadev_device.lock held.
 * Return: 0; -EINVAL not bound or being unbound; -ESRCH bound address space dead; -EPERM another
 * address space.
 */
int svadev_context_may_submit(struct svadev_context *context)
{
	lockdep_assert_held(&context->sdev->lock);

	if (!context->accepting)
		return -EINVAL;
	/* If they are equal it is alive, since current uses it. */
	if (context->mm != current->mm)
		return svadev_context_mm_dead(context) ? -ESRCH : -EPERM;
	return 0;
}

/**
 * svadev_context_unbind() - undo svadev_context_bind(), once
 * @context: context
 *
 * Context: process; sleeps, bounded by the drain timeout and a few command timeouts.
 * Return: 0; -EINVAL not bound; -EPERM neither the address space that bound nor a dead one; -EINTR
 * before anything was done.
 */
int svadev_context_unbind(struct svadev_context *context)
{
	int err = 0;

	if (mutex_lock_interruptible(&context->mutex))
		return -EINTR;
	if (READ_ONCE(context->sdev->state) == SVADEV_GONE)
		err = -ENODEV;
	else if (!context->handle)
		err = -EINVAL;
	else if (!svadev_context_may_end(context))
		err = -EPERM;
	else
		unbind_locked(context);
	mutex_unlock(&context->mutex);
	return err;
}

/**
 * svadev_context_evict() - unbind, if bound, since the device goes away
 * @context: context; stays, with its completions, until its file is closed
 *
 * Context: remove, contexts_lock held, state SVADEV_GONE.
 */
void svadev_context_evict(struct svadev_context *context)
{
	lockdep_assert_held(&context->sdev->contexts_lock);

	guard(mutex)(&context->mutex);
	if (context->handle)
		unbind_locked(context);
	wake_up_all(&context->wait);
}

/**
 * svadev_context_destroy() - the last user of the file is gone
 * @context: context; freed
 *
 * When a process is killed this runs after its address space is gone (exit_mm() before
 * exit_files()), unless another process shares the file. Nothing in here needs the address space.
 *
 * Context: release; sleeps as svadev_context_unbind().
 */
void svadev_context_destroy(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;
	struct svadev_request *request, *next;
	LIST_HEAD(done);

	scoped_guard(mutex, &context->mutex) {
		if (context->handle)
			unbind_locked(context);
		else
			stop_and_drain(context); /* RAW work needs no binding */
	}
	/* After the unbind: remove must find the context for as long as it has a handle. */
	scoped_guard(mutex, &sdev->contexts_lock)
		list_del(&context->node);
	/*
	 * With the lock: whoever completed the last request has dropped it, and so is done with the
	 * context.
	 */
	scoped_guard(spinlock_irq, &sdev->lock) {
		WARN_ON(context->in_flight_count);
		list_splice_init(&context->done, &done);
	}
	list_for_each_entry_safe(request, next, &done, node)
		kmem_cache_free(svadev_request_cache, request);
	put_device(&sdev->dev);
	kfree(context);
}
