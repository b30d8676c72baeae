// SPDX-License-Identifier: GPL-2.0-only
/*
 * svadev: the kernel queue: a submission and a completion ring in coherent memory, shared by all
 * contexts of a function.
 *
 * Every descriptor in flight has a slot, and there are as many slots as ring entries. So neither
 * ring overflows: descriptors that the device has not fetched and completions that we have not read
 * are both in flight.
 *
 * The device is not trusted: it sees a cookie that names slot and generation, and a completion
 * counts only if both match what is in flight. What it writes is copied once, then looked at.
 */
#include <linux/bitfield.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/jiffies.h>
#include <linux/slab.h>

#include "svadev.h"

#define WATCHDOG_INTERVAL HZ

static u32 ring_entries(const struct svadev_device *sdev)
{
	return 1U << sdev->ring_log2;
}

static u32 ring_mask(const struct svadev_device *sdev)
{
	return ring_entries(sdev) - 1;
}

static bool anything_in_flight(const struct svadev_device *sdev)
{
	return sdev->free_count < ring_entries(sdev);
}

/**
 * svadev_queue_alloc() - memory of the rings and slots
 * @sdev: identified device
 *
 * Context: probe.
 * Return: 0 or -ENOMEM; what was allocated is freed by svadev_queue_free() and with the device.
 */
int svadev_queue_alloc(struct svadev_device *sdev)
{
	struct device *dev = &sdev->pdev->dev;
	u32 entries = ring_entries(sdev);

	sdev->slots = kvcalloc(entries, sizeof(*sdev->slots), GFP_KERNEL);
	sdev->free_slots = kvcalloc(entries, sizeof(*sdev->free_slots), GFP_KERNEL);
	sdev->sq = dma_alloc_coherent(dev, entries * sizeof(*sdev->sq), &sdev->sq_dma, GFP_KERNEL);
	sdev->cq = dma_alloc_coherent(dev, entries * sizeof(*sdev->cq), &sdev->cq_dma, GFP_KERNEL);
	if (!sdev->slots || !sdev->free_slots || !sdev->sq || !sdev->cq)
		return -ENOMEM;
	for (u32 slot = 0; slot < entries; slot++)
		sdev->free_slots[slot] = slot;
	sdev->free_count = entries;
	return 0;
}

/**
 * svadev_queue_free() - free the rings
 * @sdev: device that is stopped, or not a bus master any more
 *
 * The slots stay until the last reference to the device goes: open files still look at the counts.
 *
 * Context: probe's error path, or remove after the interrupt is freed. May sleep.
 */
void svadev_queue_free(struct svadev_device *sdev)
{
	struct device *dev = &sdev->pdev->dev;
	u32 entries = ring_entries(sdev);

	if (sdev->sq)
		dma_free_coherent(dev, entries * sizeof(*sdev->sq), sdev->sq, sdev->sq_dma);
	if (sdev->cq)
		dma_free_coherent(dev, entries * sizeof(*sdev->cq), sdev->cq, sdev->cq_dma);
	sdev->sq = NULL;
	sdev->cq = NULL;
}

/**
 * svadev_queue_reset() - make the rings as new
 * @sdev: device whose queue is disabled, with nothing in flight
 *
 * Cookies' generations go on, so that a completion from before the reset never matches.
 *
 * Context: as svadev_hw_start().
 */
void svadev_queue_reset(struct svadev_device *sdev)
{
	guard(spinlock_irq)(&sdev->lock);
	WARN_ON_ONCE(anything_in_flight(sdev) || sdev->ring_live);
	memset(sdev->sq, 0, ring_entries(sdev) * sizeof(*sdev->sq));
	memset(sdev->cq, 0, ring_entries(sdev) * sizeof(*sdev->cq));
	sdev->sq_tail = 0;
	sdev->cq_head = 0;
}

/* Moves a request that is in flight to its context's completions and frees its slot. */
static void complete_request(struct svadev_request *request,
			     const struct svadev_completion *completion)
{
	struct svadev_context *context = request->context;
	struct svadev_device *sdev = context->sdev;
	u16 slot = request->tag & (BIT(SVADEV_TAG_SLOT_BITS) - 1);

	lockdep_assert_held(&sdev->lock);

	sdev->slots[slot] = NULL;
	sdev->free_slots[sdev->free_count++] = slot;

	request->completion = *completion;
	request->completion.cookie = request->cookie;
	request->completion.reserved = 0;
	request->completion.seq = 0;
	list_move_tail(&request->node, &context->done);
	WRITE_ONCE(context->user->in_flight, context->user->in_flight - 1);
	WRITE_ONCE(context->uncollected, context->uncollected + 1);
	WRITE_ONCE(context->in_flight_count, context->in_flight_count - 1);
	/*
	 * The context lives: whoever frees it has first seen in_flight_count fall to 0 with this
	 * lock held (svadev_context_destroy()), and we hold it until the wake-up is over.
	 */
	wake_up_all(&context->wait);
}

/*
 * The request that a completion is for, or NULL if the device made the cookie up or completed
 * something twice.
 */
static struct svadev_request *request_of(struct svadev_device *sdev, u64 tag)
{
	u64 slot = tag & (BIT(SVADEV_TAG_SLOT_BITS) - 1);
	struct svadev_request *request;

	lockdep_assert_held(&sdev->lock);

	if (slot >= ring_entries(sdev))
		return NULL;
	request = sdev->slots[slot];
	return request && request->tag == tag ? request : NULL;
}

/*
 * Takes what is in the completion ring, at most @most, however fast the device writes. Says whether
 * there may be more.
 */
static bool queue_reap(struct svadev_device *sdev, u32 most)
{
	u32 taken;

	lockdep_assert_held(&sdev->lock);

	if (!sdev->ring_live)
		return false;
	for (taken = 0; taken < most; taken++) {
		struct svadev_completion *entry = &sdev->cq[sdev->cq_head & ring_mask(sdev)];
		struct svadev_completion completion;
		struct svadev_request *request;

		if (READ_ONCE(entry->seq) != sdev->cq_head + 1)
			break;
		/*
		 * seq is written last: what stands before it in the entry is whole once seq is
		 * seen.
		 */
		dma_rmb();
		completion = *entry;
		sdev->cq_head++;
		request = request_of(sdev, completion.cookie);
		if (!request) {
			sdev->stats.bad_completions++;
			dev_warn_ratelimited(&sdev->pdev->dev,
					     "completion %u matches nothing in flight: cookie %#llx\n",
					     sdev->cq_head - 1, completion.cookie);
			continue;
		}
		sdev->stats.completed++;
		complete_request(request, &completion);
	}
	if (!taken)
		return false;
	/*
	 * No look at ARMED here, though CQ_HEAD moved: that is for a device that waits for room in
	 * the completion ring, and this one never does. All that is in flight fits into the ring,
	 * and a descriptor that reuses one of the slots just freed gets into the ring only after we
	 * drop the lock, so its SQ_TAIL is stored after this CQ_HEAD.
	 */
	writel(sdev->cq_head, sdev->doorbells + SVADEV_DOORBELL_CQ_HEAD);
	wake_up_all(&sdev->room_wait);
	return taken == most;
}

/**
 * svadev_queue_irq() - vector 0: completions are there
 * @irq: interrupt number
 * @data: the device
 *
 * Context: hard interrupt. The device lives: free_irq() comes before its last put.
 * Return: IRQ_HANDLED, or IRQ_WAKE_THREAD if there is more to do. MSI-X is not shared.
 */
irqreturn_t svadev_queue_irq(int irq, void *data)
{
	struct svadev_device *sdev = data;
	bool more;

	scoped_guard(spinlock_irqsave, &sdev->lock) {
		sdev->stats.interrupts++;
		more = queue_reap(sdev, SVADEV_REAP_BATCH);
		/* It is the user queues' vector, too, if there is no other. */
		more |= sdev->vectors == 1 && sdev->stats.user_queues;
	}
	return more ? IRQ_WAKE_THREAD : IRQ_HANDLED;
}

/**
 * svadev_queue_irq_thread() - vector 0: more completions, and user queues without a vector
 * @irq: interrupt number
 * @data: the device
 *
 * Context: thread; sleeps.
 * Return: IRQ_HANDLED.
 */
irqreturn_t svadev_queue_irq_thread(int irq, void *data)
{
	struct svadev_device *sdev = data;

	svadev_queue_poll(sdev);
	if (sdev->vectors == 1)
		svadev_user_queue_signal(sdev, irq);
	return IRQ_HANDLED;
}

/**
 * svadev_queue_poll() - take what is in the completion ring without waiting for the interrupt
 * @sdev: device, in any state
 *
 * Touches the doorbell only while the ring is live, and so while it is mapped.
 *
 * Context: process, @gate not needed: ring_live is cleared under the lock before anything goes
 * away.
 */
void svadev_queue_poll(struct svadev_device *sdev)
{
	u32 entries = ring_entries(sdev);
	bool more = true;

	/* A ring's worth, in batches: each is one section with interrupts off. */
	for (u32 taken = 0; more && taken < entries; taken += SVADEV_REAP_BATCH) {
		guard(spinlock_irq)(&sdev->lock);
		more = queue_reap(sdev, SVADEV_REAP_BATCH);
	}
}

/**
 * svadev_queue_room() - may this context submit one more
 * @context: whose descriptor
 *
 * A user may not have more in flight than there are free slots. So one user alone may fill half of
 * the ring, two a third each, and whoever comes next always finds room, however slow the others'
 * work is.
 *
 * Context: svadev_device.lock held.
 * Return: 0; -EAGAIN if room comes when something completes, -ENOBUFS if the program has to collect
 * first.
 */
int svadev_queue_room(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;

	lockdep_assert_held(&sdev->lock);

	if (context->in_flight_count + context->uncollected >= SVADEV_MAX_UNCOLLECTED)
		return -ENOBUFS;
	if (context->in_flight_count >= SVADEV_MAX_IN_FLIGHT ||
	    context->user->in_flight >= sdev->free_count)
		return -EAGAIN;
	return 0;
}

/**
 * svadev_queue_push() - put a descriptor into the ring
 * @context: whose; svadev_queue_room() just said 0
 * @request: its request; belongs to the ring and then to the context from now on
 * @desc: the descriptor; cookie and interrupt flag are replaced
 *
 * The device sees it with svadev_queue_publish().
 *
 * Context: @gate held for reading, state SVADEV_RUNNING, svadev_device.lock held.
 */
void svadev_queue_push(struct svadev_context *context, struct svadev_request *request,
		       struct svadev_desc *desc)
{
	struct svadev_device *sdev = context->sdev;
	u16 slot;

	lockdep_assert_held_read(&sdev->gate);
	lockdep_assert_held(&sdev->lock);
	WARN_ON_ONCE(!sdev->ring_live);

	slot = sdev->free_slots[--sdev->free_count];
	request->context = context;
	request->tag = sdev->generation++ << SVADEV_TAG_SLOT_BITS | slot;
	request->cookie = desc->cookie;
	request->submitted = jiffies;
	request->reported = false;
	sdev->slots[slot] = request;
	list_add_tail(&request->node, &context->in_flight);
	WRITE_ONCE(context->user->in_flight, context->user->in_flight + 1);
	WRITE_ONCE(context->in_flight_count, context->in_flight_count + 1);

	desc->cookie = request->tag;
	/* Whatever completes, someone may wait for just that. */
	desc->flags |= SVADEV_DESC_INTERRUPT;
	sdev->sq[sdev->sq_tail & ring_mask(sdev)] = *desc;
	sdev->sq_tail++;
	sdev->stats.submitted++;
}

/**
 * svadev_queue_publish() - let the device see what was pushed
 * @sdev: device
 *
 * Under the lock, so that the tails of two submitters are stored in their order. Follow with
 * svadev_queue_wake().
 *
 * Context: as svadev_queue_push().
 */
void svadev_queue_publish(struct svadev_device *sdev)
{
	lockdep_assert_held(&sdev->lock);
	/* writel() orders the descriptors before the tail. */
	writel(sdev->sq_tail, sdev->doorbells + SVADEV_DOORBELL_SQ_TAIL);
}

/**
 * svadev_queue_wake() - wake the engine if it sleeps
 * @sdev: device
 *
 * Outside the lock, for the write traps. Two submitters may both wake; that is harmless.
 *
 * Context: process, @gate held for reading, after svadev_queue_publish() and with the lock dropped.
 */
void svadev_queue_wake(struct svadev_device *sdev)
{
	lockdep_assert_held_read(&sdev->gate);
	/*
	 * Store the tail, full fence, load ARMED: the engine does store ARMED, full fence, load the
	 * tail. One of the two sees the other's store, so either it finds the work or we wake it.
	 */
	mb();
	if (readl(sdev->doorbells + SVADEV_DOORBELL_ARMED))
		writel(0, sdev->regs + SVADEV_REG_WAKE);
	/* Does nothing if it is pending; ends by itself when nothing is in flight. */
	schedule_delayed_work(&sdev->watchdog, WATCHDOG_INTERVAL);
}

/* Completes what the device will not complete any more. */
static void abort_in_flight(struct svadev_device *sdev)
{
	static const struct svadev_completion aborted = { .status = SVADEV_STATUS_ABORTED };

	lockdep_assert_held(&sdev->lock);

	for (u32 slot = 0; slot < ring_entries(sdev); slot++) {
		if (!sdev->slots[slot])
			continue;
		sdev->stats.aborted++;
		complete_request(sdev->slots[slot], &aborted);
	}
	wake_up_all(&sdev->room_wait);
}

/**
 * svadev_queue_halt() - stop the function, complete everything, change the state
 * @sdev: device
 * @state: state to be in from now on, not SVADEV_RUNNING
 *
 * Afterwards nothing is in flight, and nothing can be submitted until the state is SVADEV_RUNNING
 * again; user queues are lost. If the device does not answer, its work is called aborted all the same (the programs'
 * waits must end, rule L7): it can still reach their memory until the PASID is unbound or the
 * function reset, and this is in the log.
 *
 * Context: @gate held for writing. Sleeps, at most svadev_hw_limit_ms().
 */
void svadev_queue_halt(struct svadev_device *sdev, enum svadev_state state)
{
	lockdep_assert_held_write(&sdev->gate);

	if (READ_ONCE(sdev->ring_live))
		svadev_hw_stop(sdev);
	svadev_queue_poll(sdev);
	spin_lock_irq(&sdev->lock);
	/* What is left is little, unless the device did not stop. */
	queue_reap(sdev, ring_entries(sdev));
	sdev->ring_live = false;
	svadev_set_state(sdev, state);
	abort_in_flight(sdev);
	spin_unlock_irq(&sdev->lock);
	/* CONTROL has disabled them, or the reset that comes does. */
	svadev_user_queue_lose_all(sdev);
	wake_up_all(&sdev->state_wait);
}

/**
 * svadev_queue_restart() - stop and start the function because work does not end
 * @sdev: device
 * @starts: svadev_device.starts when the caller saw the work: if it has changed, that work has
 *   ended meanwhile
 * @why: for the log
 *
 * Work of all contexts ends as aborted; bindings stay. If the function does not start again, asks
 * the PCI core for a reset.
 *
 * Context: process, no lock of ours below the contexts' mutexes held. Sleeps, at most three times
 * svadev_hw_limit_ms().
 */
void svadev_queue_restart(struct svadev_device *sdev, unsigned int starts, const char *why)
{
	int err;

	guard(rwsem_write)(&sdev->gate);
	/*
	 * Otherwise what the caller saw has been aborted: someone else was faster, or the device is
	 * gone.
	 */
	if (sdev->state != SVADEV_RUNNING || sdev->starts != starts)
		return;

	dev_warn_ratelimited(&sdev->pdev->dev, "%s: restarting the function, its work is aborted\n", why);
	svadev_queue_halt(sdev, SVADEV_FAILED);
	err = svadev_hw_start(sdev);
	scoped_guard(spinlock_irq, &sdev->lock) {
		sdev->stats.restarts++;
		if (!err)
			svadev_set_state(sdev, SVADEV_RUNNING);
	}
	if (err)
		schedule_work(&sdev->reset_work);
	wake_up_all(&sdev->state_wait);
	wake_up_all(&sdev->room_wait);
	svadev_state_changed(sdev);
}

/* Says once for each descriptor that it takes too long; one line for all that crossed the limit. */
static void report_stuck(struct svadev_device *sdev)
{
	unsigned long limit = msecs_to_jiffies(svadev_stuck_ms);
	struct svadev_request *example = NULL;
	unsigned int stuck = 0;

	lockdep_assert_held(&sdev->lock);

	for (u32 slot = 0; slot < ring_entries(sdev); slot++) {
		struct svadev_request *request = sdev->slots[slot];

		if (!request || request->reported ||
		    time_before(jiffies, request->submitted + limit))
			continue;
		request->reported = true;
		example = request;
		stuck++;
	}
	sdev->stats.stuck += stuck;
	if (stuck)
		dev_warn_ratelimited(&sdev->pdev->dev,
				     "%u descriptors in flight for %u ms, one of PASID %u: cookie %#llx\n",
				     stuck, jiffies_to_msecs(jiffies - example->submitted),
				     example->context->pasid, example->tag);
}

/**
 * svadev_queue_watchdog() - look for a queue that halted, an interrupt that was lost, work that
 * does not end
 * @work: svadev_device.watchdog
 *
 * A halted queue is restarted: with descriptors and rings that only the driver writes, it is the
 * device's fault or the driver's, and in both cases nobody's work would ever end. Slow work is only
 * reported: page faults take what they take, and the device has a timeout for them.
 *
 * Context: work queue; remove cancels it.
 */
void svadev_queue_watchdog(struct work_struct *work)
{
	struct svadev_device *sdev =
		container_of(to_delayed_work(work), struct svadev_device, watchdog);
	unsigned int starts;
	bool halted, again;
	u32 status;

	/* Not waiting: a writer aborts what is in flight anyhow, and remove waits for us. */
	if (!down_read_trylock(&sdev->gate)) {
		schedule_delayed_work(&sdev->watchdog, WATCHDOG_INTERVAL);
		return;
	}
	if (sdev->state != SVADEV_RUNNING) {
		up_read(&sdev->gate);
		return;
	}
	starts = sdev->starts;
	status = svadev_hw_queue_status(sdev, 0);
	halted = status != U32_MAX && (status & SVADEV_QUEUE_STATUS_HALTED);
	if (halted)
		dev_err(&sdev->pdev->dev, "the kernel queue halted: error %u, address %#llx\n",
			(u32)FIELD_GET(SVADEV_QUEUE_STATUS_ERROR, status),
			svadev_hw_queue_fault_address(sdev, 0));
	scoped_guard(spinlock_irq, &sdev->lock) {
		queue_reap(sdev, SVADEV_REAP_BATCH);
		report_stuck(sdev);
		again = anything_in_flight(sdev);
	}
	up_read(&sdev->gate);

	if (halted)
		svadev_queue_restart(sdev, starts, "kernel queue halted");
	else if (again)
		schedule_delayed_work(&sdev->watchdog, WATCHDOG_INTERVAL);
}
