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
 *     IOMMU. If the abort does not succeed (the kernel may take for ever to answer a page request),
 *     there is no step 5: the binding stays, UNBIND says so, and a file that is closed leaves an
 *     orphan, which is tried again until it succeeds.
 *  5. Unbind: the SVA core clears the PASID entry if this was the last handle, flushes caches,
 *     drains page requests.
 *  6. Forget: drop the mm_struct, free the bond. Only now may the PASID be given to another address
 *     space.
 *
 * Death of the address space comes between 2 and 3: the IOMMU driver's mmu_notifier release clears the
 * PASID entry and flushes (rule L4). Work in flight then ends in translation faults; the handle
 * stays, stale, until 5. Our own notifier only says that it happened (svadev_mm.c), and so unbind
 * can keep clear of it (rules L11, L12).
 */
#include <linux/cred.h>
#include <linux/delay.h>
#include <linux/iommu.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "svadev.h"

/* Most contexts of one user on one function, without CAP_SYS_RESOURCE. */
#define MAX_USER_CONTEXTS 1024

/* How soon an orphan is tried again. */
#define ORPHAN_INTERVAL HZ

/**
 * svadev_enter() - get access to the hardware
 * @sdev: device
 * @nonblock: do not wait for the end of a reset
 *
 * Context: process, may sleep; interruptible.
 * Return: 0 with @gate held for reading and the state SVADEV_RUNNING: give it back with
 * svadev_leave(). Else -ERESTARTSYS, -EAGAIN (reset under way), -EIO, -ENODEV.
 */
int svadev_enter(struct svadev_device *sdev, bool nonblock)
{
	for (;;) {
		enum svadev_state state;

		if (down_read_interruptible(&sdev->gate))
			return -ERESTARTSYS;
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
			return -ERESTARTSYS;
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

/* The current user's account, with one more context in it. */
static struct svadev_user *user_get(struct svadev_device *sdev)
{
	struct svadev_user *user;

	lockdep_assert_held(&sdev->contexts_lock);

	list_for_each_entry(user, &sdev->users, node)
		if (uid_eq(user->uid, current_uid()))
			goto found;
	user = kzalloc(sizeof(*user), GFP_KERNEL_ACCOUNT);
	if (!user)
		return ERR_PTR(-ENOMEM);
	user->uid = current_uid();
	list_add(&user->node, &sdev->users);
found:
	if (user->contexts >= MAX_USER_CONTEXTS && !capable(CAP_SYS_RESOURCE))
		return ERR_PTR(-EMFILE);
	user->contexts++;
	return user;
}

static void user_put(struct svadev_device *sdev, struct svadev_user *user)
{
	lockdep_assert_held(&sdev->contexts_lock);

	if (--user->contexts)
		return;
	WARN_ON(user->queues || user->in_flight);
	list_del(&user->node);
	kfree(user);
}

/**
 * svadev_context_create() - a context for a new open file
 * @sdev: device
 * @mapping: the file's
 *
 * Context: open; may sleep.
 * Return: the context, which holds a reference to the device; -ENOMEM; -ENODEV if the device is
 * gone; -EMFILE if the user has too many.
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
	context->user = user_get(sdev);
	if (IS_ERR(context->user)) {
		int err = PTR_ERR(context->user);

		kfree(context);
		return ERR_PTR(err);
	}
	get_device(&sdev->dev);
	context->sdev = sdev;
	list_add_tail(&context->node, &sdev->contexts);
	return context;
}

/* The bond of a PASID with one more holder, or a new one. */
static struct svadev_bond *bond_get(struct svadev_device *sdev, u32 pasid, struct svadev_mm *smm)
{
	struct svadev_bond *bond;

	guard(mutex)(&sdev->bonds_lock);
	list_for_each_entry(bond, &sdev->bonds, node)
		if (bond->pasid == pasid)
			goto found;
	bond = kzalloc(sizeof(*bond), GFP_KERNEL_ACCOUNT);
	if (!bond)
		return NULL;
	bond->pasid = pasid;
	bond->smm = smm;
	bond->quiet = true;
	list_add(&bond->node, &sdev->bonds);
found:
	bond->holders++;
	return bond;
}

/* bonds_lock held. Not here: if a reset is the last user, the mm's mappings of queues go with it. */
static void let_go(struct svadev_bond *bond)
{
	if (bond->held)
		mmput_async(bond->smm->notifier.mm);
	bond->held = false;
}

static void bond_put(struct svadev_device *sdev, struct svadev_bond *bond)
{
	guard(mutex)(&sdev->bonds_lock);
	if (--bond->holders)
		return;
	WARN_ON(bond->active || bond->stopping || !bond->quiet);
	let_go(bond);
	list_del(&bond->node);
	kfree(bond);
}

/* Whether each address space is held, or its death is over as far as the IOMMU is concerned. */
static bool all_held(struct svadev_device *sdev)
{
	struct svadev_bond *bond;

	guard(mutex)(&sdev->bonds_lock);
	list_for_each_entry(bond, &sdev->bonds, node) {
		if (!bond->held)
			bond->held = mmget_not_zero(bond->smm->notifier.mm);
		if (!bond->held && !READ_ONCE(bond->smm->dead))
			return false;
	}
	return true;
}

/**
 * svadev_context_hold_all() - keep what is bound from dying during a reset
 * @sdev: device
 *
 * Linux 7.3 takes the PASIDs' entries away and puts them back around a reset, and that must not meet
 * the release of an address space (svadev_mm_hold()). New ones cannot be bound meanwhile.
 *
 * Context: reset_prepare; sleeps, at most SVADEV_MM_DEATH_TIMEOUT.
 */
void svadev_context_hold_all(struct svadev_device *sdev)
{
	unsigned long deadline = jiffies + SVADEV_MM_DEATH_TIMEOUT;

	while (!all_held(sdev)) {
		if (time_after(jiffies, deadline)) {
			dev_warn(&sdev->dev, "a reset comes while an address space dies\n");
			break;
		}
		fsleep(USEC_PER_MSEC);
	}
	mmu_notifier_synchronize();
}

/**
 * svadev_context_let_go_all() - undo svadev_context_hold_all()
 * @sdev: device
 *
 * Context: reset_done; may sleep.
 */
void svadev_context_let_go_all(struct svadev_device *sdev)
{
	struct svadev_bond *bond;

	guard(mutex)(&sdev->bonds_lock);
	list_for_each_entry(bond, &sdev->bonds, node)
		let_go(bond);
}

/*
 * Counts a new context in. A context that stops the same PASID either sees it and does not abort, or
 * has finished aborting before the new one can submit.
 */
static int bond_activate(struct svadev_device *sdev, struct svadev_bond *bond, bool nonblock)
{
	for (;;) {
		scoped_guard(mutex, &sdev->bonds_lock) {
			if (!bond->stopping) {
				bond->active++;
				bond->quiet = false;
				return 0;
			}
		}
		if (nonblock)
			return -EAGAIN;
		if (wait_event_interruptible(sdev->bonds_wait, !READ_ONCE(bond->stopping)))
			return -ERESTARTSYS;
	}
}

/*
 * Binds the caller's address space. Without the gate: the SVA core takes mmap_lock. It refuses while
 * the function is in a reset, and this then waits for the end of that. The handle keeps clear of
 * remove by the context's mutex, which evict takes after the state says that the device is gone.
 */
static struct iommu_sva *bind_device(struct svadev_device *sdev, bool nonblock)
{
	for (;;) {
		int err = svadev_enter(sdev, nonblock);
		struct iommu_sva *handle;
		unsigned int starts;

		if (err)
			return ERR_PTR(err);
		starts = sdev->starts;
		svadev_leave(sdev);
		handle = svadev_sva_bind(&sdev->pdev->dev, current->mm);
		if (handle != ERR_PTR(-EBUSY))
			return handle;
		if (READ_ONCE(sdev->state) == SVADEV_RUNNING && READ_ONCE(sdev->starts) == starts)
			return handle;
	}
}

static int bind_locked(struct svadev_context *context, bool nonblock)
{
	struct svadev_device *sdev = context->sdev;
	struct svadev_bond *bond;
	struct iommu_sva *handle;
	struct svadev_mm *smm;
	u32 pasid;
	int err;

	lockdep_assert_held(&context->mutex);

	if (READ_ONCE(sdev->state) == SVADEV_GONE)
		return -ENODEV;
	if (context->handle)
		return -EBUSY;
	smm = svadev_mm_get();
	if (IS_ERR(smm))
		return PTR_ERR(smm);
	handle = bind_device(sdev, nonblock);
	if (IS_ERR(handle)) {
		err = PTR_ERR(handle);
		goto put_mm;
	}
	err = -EOVERFLOW;
	pasid = svadev_sva_pasid(handle);
	if (pasid & ~SVADEV_DESC_PASID_MASK)
		goto unbind;
	err = -ENOMEM;
	bond = bond_get(sdev, pasid, smm);
	if (!bond)
		goto unbind;
	err = bond_activate(sdev, bond, nonblock);
	if (err)
		goto put_bond;

	context->handle = handle;
	context->bond = bond;
	context->smm = smm;
	context->stopped = false;
	mmgrab(current->mm);
	svadev_mm_add(smm, context);
	scoped_guard(spinlock_irq, &sdev->lock) {
		context->mm = current->mm;
		context->pasid = pasid;
		context->accepting = true;
	}
	return 0;

	/* Whoever stops the PASID holds a handle of its own, so this is not the last of a busy one. */
put_bond:
	bond_put(sdev, bond);
unbind:
	svadev_sva_unbind(handle);
put_mm:
	svadev_mm_put(smm);
	return err;
}

/**
 * svadev_context_bind() - bind the caller's address space
 * @context: context
 * @nonblock: do not wait for the end of a reset, or of an abort of the same PASID
 * @pasid: out: its PASID
 *
 * The SVA core wants a reference to mm_users for the call. current holds one for its own mm until
 * it exits, and does not exit in here. Afterwards it is the core's handle that keeps the mm_struct,
 * not its pages: those may go any time, and the IOMMU driver's notifier then takes the PASID entry
 * away first (rule L9). Our own mmgrab() only keeps the pointer from being reused.
 *
 * Context: process; may sleep, interruptible.
 * Return: 0; -EBUSY if bound; what svadev_enter() or iommu_sva_bind_device() says.
 */
int svadev_context_bind(struct svadev_context *context, bool nonblock, u32 *pasid)
{
	int err;

	if (mutex_lock_interruptible(&context->mutex))
		return -ERESTARTSYS;
	err = bind_locked(context, nonblock);
	*pasid = context->pasid;
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

static bool take_abort_slot(struct svadev_device *sdev, unsigned int *slot)
{
	for (*slot = 0; *slot < SVADEV_ABORT_SLOTS; ++*slot)
		if (!test_and_set_bit(*slot, &sdev->abort_slots))
			return true;
	return false;
}

/* Waits for the end of an abort. The gate is open in between: a reset does not wait for it. */
static int wait_for_abort(struct svadev_device *sdev, unsigned int slot, u32 pasid,
			  unsigned int starts, unsigned long deadline)
{
	unsigned int pause_us = 50;

	for (;;) {
		bool late = time_after(jiffies, deadline);
		int err = -EAGAIN;

		down_read(&sdev->gate);
		if (sdev->state == SVADEV_RUNNING && sdev->starts == starts)
			err = svadev_hw_abort_result(sdev, slot, pasid);
		up_read(&sdev->gate);
		if (err != -EINPROGRESS)
			return err;
		if (late)
			return -ETIMEDOUT;
		fsleep(pause_us);
		pause_us = min(2 * pause_us, 10U * USEC_PER_MSEC);
	}
}

/* As abort_pasid(), where there is no function that runs: what the stop of the function has proved. */
static int ask_stopped(struct svadev_device *sdev)
{
	guard(rwsem_write)(&sdev->gate);
	switch (sdev->state) {
	case SVADEV_RUNNING:
	case SVADEV_RESETTING:
		/* A reset may come before all answers are there; after it, an abort asks again. */
		return sdev->state == SVADEV_RESETTING && sdev->quiet ? 0 : -EAGAIN;
	case SVADEV_FAILED:
		/* Not for ever, which -ENODEV would say. */
		return svadev_hw_stop(sdev) ? -EIO : 0;
	case SVADEV_GONE:
		break;
	}
	return sdev->quiet || sdev->lost ? 0 : -ENODEV;
}

/*
 * Proves that the device does nothing for a PASID: no access is under way, and no page request is
 * unanswered. Nobody else is held up meanwhile: each abort has a slot of its own, and no lock is
 * held.
 */
static int abort_pasid(struct svadev_device *sdev, u32 pasid)
{
	unsigned long limit = msecs_to_jiffies(svadev_hw_limit_ms(sdev));
	unsigned long deadline = jiffies + limit;
	unsigned int slot, starts;
	int err;

	if (!wait_event_timeout(sdev->abort_wait, take_abort_slot(sdev, &slot), limit))
		return -EBUSY;
	do {
		down_read(&sdev->gate);
		starts = sdev->starts;
		err = sdev->state == SVADEV_RUNNING ? svadev_hw_abort_start(sdev, slot, pasid) :
						      -ESHUTDOWN;
		up_read(&sdev->gate);
		if (err == -ESHUTDOWN) {
			err = ask_stopped(sdev);
			if (err == -EAGAIN)
				wait_event_timeout(sdev->state_wait,
						   READ_ONCE(sdev->state) != SVADEV_RESETTING,
						   limit);
		} else if (!err) {
			err = wait_for_abort(sdev, slot, pasid, starts, deadline);
		}
	} while (err == -EAGAIN && time_before(jiffies, deadline));
	clear_bit(slot, &sdev->abort_slots);
	wake_up(&sdev->abort_wait);
	svadev_queue_poll(sdev);
	/* It did not answer, though its driver thinks that it runs. */
	if (err == -ENODEV && READ_ONCE(sdev->state) != SVADEV_GONE)
		err = -EIO;
	if (err)
		dev_warn_ratelimited(&sdev->dev, "PASID %u stays: %s: %d\n", pasid,
				     err == -EBUSY ? "the kernel has not answered its page requests" :
						     "the device does not abort it", err);
	return err;
}

/*
 * Stops the context's share of its PASID. If it was the last that could submit, the PASID is
 * aborted.
 */
static int bond_stop(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;
	struct svadev_bond *bond = context->bond;
	int err = 0;

	mutex_lock(&sdev->bonds_lock);
	if (!context->stopped) {
		context->stopped = true;
		bond->active--;
	}
	while (!err && !bond->active && !bond->quiet) {
		if (bond->stopping) {
			mutex_unlock(&sdev->bonds_lock);
			wait_event(sdev->bonds_wait, !READ_ONCE(bond->stopping));
			mutex_lock(&sdev->bonds_lock);
			continue;
		}
		bond->stopping = true;
		mutex_unlock(&sdev->bonds_lock);
		err = abort_pasid(sdev, bond->pasid);
		mutex_lock(&sdev->bonds_lock);
		WRITE_ONCE(bond->stopping, false);
		bond->quiet = !err;
		wake_up_all(&sdev->bonds_wait);
	}
	mutex_unlock(&sdev->bonds_lock);
	return err;
}

/*
 * Steps 3 and 4: afterwards nothing of this context is in flight, and if nobody else uses the PASID
 * here, the device does nothing for it.
 *
 * The device aborts by PASID, and other contexts of the same address space may use that PASID here.
 * So only the last one that stops aborts. One that stops earlier waits for its own work: that ends
 * by itself, for the device answers a missing page with an error after its own timeout. If it does
 * not within drain_timeout_ms, the PASID is aborted at the others' expense: they are the same
 * program, and a wait without end would be worse (rule L7). If even that does not help, the
 * function is restarted, at everyone's expense.
 */
static int stop_and_drain(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;
	unsigned int starts = READ_ONCE(sdev->starts);
	unsigned int drain_ms = READ_ONCE(svadev_drain_timeout_ms);
	int err = 0;

	lockdep_assert_held(&context->mutex);

	scoped_guard(spinlock_irq, &sdev->lock) {
		context->accepting = false;
		context->stopping = true;
	}
	/* Submitters that wait for room must see that none will come for them. */
	wake_up_all(&context->wait);
	wake_up_all(&sdev->room_wait);
	/* New ones need the context's mutex, which is ours, and @accepting. */
	svadev_user_queue_destroy_all(context);

	if (context->bond)
		err = bond_stop(context);
	if (err)
		return err;
	if (wait_idle(context, drain_ms))
		return 0;

	dev_warn_ratelimited(&sdev->dev, "PASID %u: %u descriptors still in flight after %u ms\n",
			     context->pasid, READ_ONCE(context->in_flight_count), drain_ms);
	if (context->bond)
		abort_pasid(sdev, context->pasid);
	if (wait_idle(context, svadev_command_timeout_ms))
		return 0;
	svadev_queue_restart(sdev, starts, "work does not end");
	/*
	 * A restart, a reset or remove have completed everything: nothing is in flight in another
	 * state, or from an earlier start.
	 */
	WARN_ON(!wait_idle(context, svadev_command_timeout_ms));
	return 0;
}

/*
 * Steps 3 to 6. If it fails the context is still bound, takes no work, and this can be called again.
 */
static int unbind_locked(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;
	struct mm_struct *mm = context->mm;
	bool held;
	int err;

	lockdep_assert_held(&context->mutex);

	err = stop_and_drain(context);
	if (err)
		return err;
	err = svadev_mm_hold(context->smm, &held);
	if (err)
		return err;
	/*
	 * The handle needs the PCI device and its group. Both live: remove takes this context's
	 * mutex to unbind it before it lets them go, and clears the handle.
	 */
	svadev_sva_unbind(context->handle);
	context->handle = NULL;
	bond_put(sdev, context->bond);
	context->bond = NULL;
	svadev_mm_del(context->smm, context);
	svadev_mm_put(context->smm);
	context->smm = NULL;
	scoped_guard(spinlock_irq, &sdev->lock) {
		context->mm = NULL;
		context->pasid = 0;
		context->stopping = false;
	}
	/* Not here: if this is the last user, its mappings of our queues go away with it. */
	if (held)
		mmput_async(mm);
	mmdrop(mm);
	return 0;
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
 * Context: process; sleeps, bounded by the drain timeout and a few times svadev_hw_limit_ms().
 * Return: 0; -EINVAL not bound; -EPERM neither the address space that bound nor a dead one; -ERESTARTSYS
 * before anything was done; -EBUSY, -ETIMEDOUT or -EIO it takes no work and is still bound.
 */
int svadev_context_unbind(struct svadev_context *context)
{
	int err = 0;

	if (mutex_lock_interruptible(&context->mutex))
		return -ERESTARTSYS;
	if (READ_ONCE(context->sdev->state) == SVADEV_GONE)
		err = -ENODEV;
	else if (!context->handle)
		err = -EINVAL;
	else if (!svadev_context_may_end(context))
		err = -EPERM;
	else
		err = unbind_locked(context);
	mutex_unlock(&context->mutex);
	return err;
}

/**
 * svadev_context_evict() - unbind, if bound, since the device goes away
 * @context: context; stays, with its completions, until its file is closed
 *
 * Context: remove, contexts_lock held, state SVADEV_GONE, the function stopped for good. Sleeps until
 * the address space is dead, if it is dying.
 */
void svadev_context_evict(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;
	int err;

	lockdep_assert_held(&sdev->contexts_lock);

	guard(mutex)(&context->mutex);
	while (context->handle) {
		err = unbind_locked(context);
		if (err)
			dev_warn_ratelimited(&sdev->dev, "PASID %u holds the removal up: %d\n",
					     context->pasid, err);
	}
	wake_up_all(&context->wait);
}

static void free_context(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;
	struct svadev_request *request, *next;
	LIST_HEAD(completions);

	/*
	 * With the lock: whoever completed the last request has dropped it, and so is done with the
	 * context.
	 */
	scoped_guard(spinlock_irq, &sdev->lock) {
		WARN_ON(context->in_flight_count);
		list_splice_init(&context->done, &completions);
	}
	list_for_each_entry_safe(request, next, &completions, node)
		kmem_cache_free(svadev_request_cache, request);
	/* After the unbind: remove must find the context for as long as it has a handle. */
	scoped_guard(mutex, &sdev->contexts_lock) {
		list_del(&context->node);
		user_put(sdev, context->user);
	}
	put_device(&sdev->dev);
	kfree(context);
}

/* Leaves a context that cannot be unbound to the work. False: remove has unbound it meanwhile. */
static bool orphan(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;

	guard(mutex)(&sdev->contexts_lock);
	guard(mutex)(&context->mutex);
	if (!context->handle)
		return false;
	list_move_tail(&context->node, &sdev->orphans);
	scoped_guard(spinlock_irq, &sdev->lock)
		sdev->stats.orphans++;
	/* Otherwise remove, which comes for the lock next, sees to it. */
	if (READ_ONCE(sdev->state) != SVADEV_GONE)
		schedule_delayed_work(&sdev->orphan_work, ORPHAN_INTERVAL);
	return true;
}

static void free_orphan(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;

	scoped_guard(spinlock_irq, &sdev->lock)
		sdev->stats.orphans--;
	free_context(context);
}

/**
 * svadev_context_destroy() - the last user of the file is gone
 * @context: context; freed, or left to svadev_context_orphan_work()
 *
 * When a process is killed this runs after its address space is gone (exit_mm() before
 * exit_files()), unless another process shares the file. Nothing in here needs the address space.
 *
 * Context: release; sleeps as svadev_context_unbind().
 */
void svadev_context_destroy(struct svadev_context *context)
{
	int err = 0;

	scoped_guard(mutex, &context->mutex) {
		if (context->handle)
			err = unbind_locked(context);
		else
			stop_and_drain(context); /* RAW work needs no binding */
	}
	if (!err || !orphan(context))
		free_context(context);
}

/**
 * svadev_context_orphan_work() - try again to unbind contexts whose file is closed
 * @work: svadev_device.orphan_work
 *
 * Each as often as it takes: no page request waits for ever without a process that can be killed, and
 * until it is answered the address space must stay bound.
 *
 * Context: work queue; remove cancels it.
 */
void svadev_context_orphan_work(struct work_struct *work)
{
	struct svadev_device *sdev =
		container_of(to_delayed_work(work), struct svadev_device, orphan_work);
	struct svadev_context *context;
	int err = 0;

	while (!err) {
		scoped_guard(mutex, &sdev->contexts_lock)
			context = list_first_entry_or_null(&sdev->orphans, struct svadev_context,
							   node);
		if (!context)
			return;
		/* Only we and remove, which waits for us, take one off the list. */
		scoped_guard(mutex, &context->mutex)
			err = context->handle ? unbind_locked(context) : 0;
		if (!err)
			free_orphan(context);
	}
	scoped_guard(mutex, &sdev->contexts_lock)
		list_move_tail(&context->node, &sdev->orphans);
	schedule_delayed_work(&sdev->orphan_work, ORPHAN_INTERVAL);
}

/**
 * svadev_context_free_orphans() - free what remove has unbound
 * @sdev: device
 *
 * Context: remove, after the orphans' work was cancelled.
 */
void svadev_context_free_orphans(struct svadev_device *sdev)
{
	struct svadev_context *context, *next;

	/* Only remove is left that could change the list: no context is bound, so none is added. */
	list_for_each_entry_safe(context, next, &sdev->orphans, node)
		free_orphan(context);
}
