// SPDX-License-Identifier: GPL-2.0-only
/*
 * svadev: user queues: rings in a program's memory that the program drives itself, through a doorbell
 * page and a wake page of its own.
 *
 * A queue belongs to a context and goes with its binding: it can only be made while the context is
 * bound, and unbind destroys it before anything else (svadev_context.c, step 3). So the PASID that
 * the device has in the queue's registers is the context's for as long as the queue exists.
 *
 * What a mapping of a page relies on. A page leads to the doorbell of queue *number*, whoever owns
 * that number now. So no mapping may outlive the queue that it was made for: destroy and lose clear
 * @live and take the page table entries away in one critical section of map_lock, and a fault puts
 * an entry in only while it holds map_lock and sees @live. The number is given away after that. The
 * vma itself may stay; its file, and so the context, lives as long, and it names its queue by a
 * reference and not by a number: it never becomes another queue's.
 */
#include <linux/bitfield.h>
#include <linux/capability.h>
#include <linux/eventfd.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "svadev.h"

/* The first queue that is not the kernel's. */
#define FIRST_USER_QUEUE 1

/* The part of a queue's name that is its number. */
#define ID_NUMBER_BITS 8
static_assert(SVADEV_MAX_QUEUES <= 1 << ID_NUMBER_BITS);

/* Offsets for mmap(), in pages: doorbell and wake page of a queue are neighbours, whatever the BAR's. */
#define PAGES_PER_QUEUE 2
#define WAKE_PAGE 1

static_assert(PAGE_SIZE == SVADEV_DOORBELL_STRIDE, "a page that is mapped holds one queue's doorbell");

static void release_queue(struct kref *ref)
{
	struct svadev_user_queue *queue = container_of(ref, struct svadev_user_queue, ref);

	if (queue->eventfd)
		eventfd_ctx_put(queue->eventfd);
	kfree(queue);
}

static void queue_put(struct svadev_user_queue *queue)
{
	kref_put(&queue->ref, release_queue);
}

/* From here on its pages raise SIGBUS. The zap waits for no fault: none holds what it takes. */
static void cut_off(struct svadev_user_queue *queue)
{
	loff_t start = (loff_t)queue->number * PAGES_PER_QUEUE * PAGE_SIZE;

	lockdep_assert_held(&queue->context->sdev->map_lock);

	queue->live = false;
	unmap_mapping_range(queue->context->mapping, start, PAGES_PER_QUEUE * PAGE_SIZE, 1);
}

/* Whether the rings are where a program can have memory, and of a size that the device can do. */
static bool rings_are_good(const struct svadev_device *sdev, const struct svadev_create_queue *args)
{
	if (args->sq_log2 < SVADEV_RING_LOG2_MIN || args->sq_log2 > sdev->max_ring_log2 ||
	    args->cq_log2 < SVADEV_RING_LOG2_MIN || args->cq_log2 > sdev->max_ring_log2)
		return false;
	if (args->sq % 64 || args->cq % 64)
		return false;
	return access_ok(u64_to_user_ptr(args->sq), sizeof(struct svadev_desc) << args->sq_log2) &&
	       access_ok(u64_to_user_ptr(args->cq),
			 sizeof(struct svadev_completion) << args->cq_log2);
}

/*
 * How it is served: more than its share is not anybody's to take, as with nice(2), and neither is a
 * CPU that does nothing but interrupts.
 */
static int check_service(struct svadev_create_queue *args)
{
	if (args->priority > SVADEV_PRIORITY_URGENT || args->interrupt_interval_us > U16_MAX ||
	    args->interrupt_count > U16_MAX || args->reserved)
		return -EINVAL;
	if (args->priority >= SVADEV_PRIORITY_HIGH && !capable(CAP_SYS_NICE))
		return -EPERM;
	if (args->interrupt_interval_us >= SVADEV_MIN_INTERRUPT_INTERVAL_US || capable(CAP_SYS_NICE))
		return 0;
	args->interrupt_interval_us = SVADEV_MIN_INTERRUPT_INTERVAL_US;
	if (args->interrupt_count)
		args->interrupt_count = max_t(u32, args->interrupt_count,
					      SVADEV_MIN_INTERRUPT_COUNT);
	return 0;
}

static struct svadev_user_queue *alloc_queue(struct svadev_context *context, int fd)
{
	struct svadev_user_queue *queue = kzalloc(sizeof(*queue), GFP_KERNEL_ACCOUNT);

	if (!queue)
		return ERR_PTR(-ENOMEM);
	kref_init(&queue->ref);
	queue->context = context;
	INIT_LIST_HEAD(&queue->signal_node);
	if (fd >= 0) {
		struct eventfd_ctx *eventfd = eventfd_ctx_fdget(fd);

		if (IS_ERR(eventfd)) {
			kfree(queue);
			return ERR_CAST(eventfd);
		}
		queue->eventfd = eventfd;
	}
	return queue;
}

/*
 * Takes a number that nobody uses. Not live yet, so nothing can be mapped. Without CAP_SYS_RESOURCE a
 * user may not have more than are free.
 */
static int take_number(struct svadev_user_queue *queue)
{
	struct svadev_device *sdev = queue->context->sdev;
	struct svadev_user *user = queue->context->user;
	bool privileged = capable(CAP_SYS_RESOURCE);
	unsigned int free = 0;
	resource_size_t bar = pci_resource_start(sdev->pdev, SVADEV_BAR_DOORBELLS);
	resource_size_t half = pci_resource_len(sdev->pdev, SVADEV_BAR_DOORBELLS) / 2;

	guard(mutex)(&sdev->map_lock);
	for (unsigned int number = FIRST_USER_QUEUE; number < sdev->queues; number++)
		free += !sdev->user_queues[number];
	if (free && user->queues >= free && !privileged)
		return -EDQUOT;
	for (unsigned int number = FIRST_USER_QUEUE; number < sdev->queues; number++) {
		if (sdev->user_queues[number])
			continue;
		user->queues++;
		sdev->user_queues[number] = queue;
		queue->number = number;
		queue->id = sdev->queue_generation++ << ID_NUMBER_BITS | number;
		queue->doorbell_pfn = (bar + number * SVADEV_DOORBELL_STRIDE) >> PAGE_SHIFT;
		queue->wake_pfn = (bar + half + number * SVADEV_DOORBELL_STRIDE) >> PAGE_SHIFT;
		return 0;
	}
	return -ENOSPC;
}

/* map_lock held. */
static void give_number_back(struct svadev_user_queue *queue)
{
	struct svadev_device *sdev = queue->context->sdev;

	lockdep_assert_held(&sdev->map_lock);

	sdev->user_queues[queue->number] = NULL;
	queue->context->user->queues--;
}

static void set_signalled(struct svadev_user_queue *queue, bool signalled)
{
	struct svadev_device *sdev = queue->context->sdev;

	guard(mutex)(&sdev->signal_lock);
	if (signalled && queue->eventfd)
		list_add_tail(&queue->signal_node, &sdev->signalled);
	else
		list_del_init(&queue->signal_node);
}

/* Vectors above the kernel queue's, in turn; the kernel queue's if there is no other. */
static unsigned int vector_of(const struct svadev_device *sdev, unsigned int number)
{
	return sdev->vectors > 1 ? 1 + number % (sdev->vectors - 1) : 0;
}

/* Enables the queue, and from then on it can be mapped and signals. */
static int start(struct svadev_user_queue *queue, const struct svadev_create_queue *args,
		 bool nonblock)
{
	struct svadev_context *context = queue->context;
	struct svadev_device *sdev = context->sdev;
	unsigned int vector = vector_of(sdev, queue->number);
	int err;

	lockdep_assert_held(&context->mutex);

	err = svadev_enter(sdev, nonblock);
	if (err)
		return err;
	/* The interrupts stay for as long as the gate is open: remove closes it first. */
	queue->irq = sdev->irqs[vector];
	set_signalled(queue, true);
	scoped_guard(spinlock_irq, &sdev->lock)
		sdev->stats.user_queues++;
	err = svadev_hw_user_queue_start(sdev, queue->number, args, context->pasid, vector);
	/* With the gate held: a halt that comes later finds it live, and takes it away. */
	scoped_guard(mutex, &sdev->map_lock)
		queue->live = !err;
	svadev_leave(sdev);
	if (err) {
		set_signalled(queue, false);
		scoped_guard(spinlock_irq, &sdev->lock)
			sdev->stats.user_queues--;
	}
	return err;
}

static int create_locked(struct svadev_context *context, struct svadev_create_queue *args,
			 bool nonblock)
{
	struct svadev_device *sdev = context->sdev;
	struct svadev_user_queue *queue;
	int err;

	lockdep_assert_held(&context->mutex);

	/* Once allowed it stays so: unbind needs the mutex, and the caller is in the address space. */
	scoped_guard(spinlock_irq, &sdev->lock)
		err = svadev_context_may_submit(context);
	if (err)
		return err;
	if (context->user_queue_count >= SVADEV_MAX_USER_QUEUES)
		return -EBUSY;

	queue = alloc_queue(context, args->eventfd);
	if (IS_ERR(queue))
		return PTR_ERR(queue);
	queue->mm = context->mm;
	err = take_number(queue);
	if (err)
		goto put;
	err = start(queue, args, nonblock);
	if (err)
		goto give_number_back;
	list_add_tail(&queue->node, &context->user_queues);
	context->user_queue_count++;

	args->queue = queue->id;
	args->doorbell_offset = (u64)queue->number * PAGES_PER_QUEUE * PAGE_SIZE;
	args->wake_offset = args->doorbell_offset + WAKE_PAGE * PAGE_SIZE;
	return 0;

give_number_back:
	scoped_guard(mutex, &sdev->map_lock)
		give_number_back(queue);
put:
	queue_put(queue);
	return err;
}

/**
 * svadev_user_queue_create() - make a queue
 * @context: bound context
 * @args: where the rings are; the outputs are stored here
 * @nonblock: do not wait for the end of a reset
 *
 * Context: the program's process; may sleep, interruptible.
 * Return: 0, or what uapi/svadev.h says.
 */
int svadev_user_queue_create(struct svadev_context *context, struct svadev_create_queue *args,
			     bool nonblock)
{
	int err;

	if (args->eventfd < -1 || !rings_are_good(context->sdev, args))
		return -EINVAL;
	err = check_service(args);
	if (err)
		return err;
	if (mutex_lock_interruptible(&context->mutex))
		return -ERESTARTSYS;
	err = create_locked(context, args, nonblock);
	mutex_unlock(&context->mutex);
	return err;
}

/*
 * Ends a queue: off in the device, not reachable through any mapping, and only then its number free.
 * If the device does not stop it, the function is restarted, at everyone's expense (rule L7): an
 * engine that still works for a queue that is gone would be worse.
 */
static void destroy_locked(struct svadev_user_queue *queue)
{
	struct svadev_context *context = queue->context;
	struct svadev_device *sdev = context->sdev;
	unsigned int starts;
	int err = 0;

	lockdep_assert_held(&context->mutex);

	down_read(&sdev->gate);
	starts = sdev->starts;
	/* Stable: only we and those who hold the gate for writing clear it. */
	if (READ_ONCE(queue->live))
		err = svadev_hw_user_queue_stop(sdev, queue->number);
	up_read(&sdev->gate);
	if (err)
		svadev_queue_restart(sdev, starts, "a user queue does not stop");

	scoped_guard(mutex, &sdev->map_lock) {
		cut_off(queue);
		give_number_back(queue);
	}
	set_signalled(queue, false);
	scoped_guard(spinlock_irq, &sdev->lock)
		sdev->stats.user_queues--;
	list_del(&queue->node);
	context->user_queue_count--;
	queue_put(queue);
}

/* The context's queue with a name, or NULL. */
static struct svadev_user_queue *find(struct svadev_context *context, u32 id)
{
	struct svadev_user_queue *queue;

	lockdep_assert_held(&context->mutex);

	list_for_each_entry(queue, &context->user_queues, node)
		if (queue->id == id)
			return queue;
	return NULL;
}

/**
 * svadev_user_queue_destroy() - end a queue
 * @context: whose it is
 * @id: its name
 *
 * Context: process; sleeps, bounded by the command timeout.
 * Return: 0; -ENOENT; -EPERM neither the address space that bound nor a dead one; -ERESTARTSYS before
 * anything was done.
 */
int svadev_user_queue_destroy(struct svadev_context *context, u32 id)
{
	struct svadev_user_queue *queue;
	int err = 0;

	if (mutex_lock_interruptible(&context->mutex))
		return -ERESTARTSYS;
	queue = find(context, id);
	if (!queue)
		err = -ENOENT;
	else if (!svadev_context_may_end(context))
		err = -EPERM;
	else
		destroy_locked(queue);
	mutex_unlock(&context->mutex);
	return err;
}

/**
 * svadev_user_queue_destroy_all() - end all queues of a context, before its work is drained
 * @context: context
 *
 * Context: svadev_context.mutex held. Sleeps, bounded by a command timeout for each queue.
 */
void svadev_user_queue_destroy_all(struct svadev_context *context)
{
	struct svadev_user_queue *queue, *next;

	lockdep_assert_held(&context->mutex);

	list_for_each_entry_safe(queue, next, &context->user_queues, node)
		destroy_locked(queue);
}

/**
 * svadev_user_queue_query() - how a queue stands
 * @context: whose it is
 * @args: names it; the outputs are stored here
 *
 * Context: process; may sleep: behind a create, destroy or unbind of the context, and a reset's
 * first half.
 * Return: 0; -ENOENT; -ERESTARTSYS.
 */
int svadev_user_queue_query(struct svadev_context *context, struct svadev_query_queue *args)
{
	struct svadev_device *sdev = context->sdev;
	struct svadev_user_queue *queue;
	int err = -ENOENT;
	u32 status;

	if (mutex_lock_interruptible(&context->mutex))
		return -ERESTARTSYS;
	queue = find(context, args->queue);
	if (!queue)
		goto unlock;
	err = 0;
	args->state = SVADEV_QUEUE_LOST;
	args->error = SVADEV_QUEUE_ERROR_NONE;
	args->fault_address = 0;

	down_read(&sdev->gate);
	if (READ_ONCE(queue->live)) {
		status = svadev_hw_queue_status(sdev, queue->number);
		if (status != U32_MAX) {
			args->state = status & SVADEV_QUEUE_STATUS_ENABLED ? SVADEV_QUEUE_RUNNING :
									     SVADEV_QUEUE_HALTED;
			args->error = FIELD_GET(SVADEV_QUEUE_STATUS_ERROR, status);
			args->fault_address = svadev_hw_queue_fault_address(sdev, queue->number);
		}
	}
	up_read(&sdev->gate);
unlock:
	mutex_unlock(&context->mutex);
	return err;
}

/**
 * svadev_user_queue_lose_all() - the function was stopped: no user queue works any more
 * @sdev: device
 *
 * The queues stay with their contexts, which destroy them; who sleeps is woken to find out.
 *
 * Context: @gate held for writing, the function stopped or about to be reset. May sleep.
 */
void svadev_user_queue_lose_all(struct svadev_device *sdev)
{
	struct svadev_user_queue *queue;

	lockdep_assert_held_write(&sdev->gate);

	scoped_guard(mutex, &sdev->map_lock) {
		for (unsigned int number = FIRST_USER_QUEUE; number < sdev->queues; number++)
			if (sdev->user_queues[number])
				cut_off(sdev->user_queues[number]);
	}
	guard(mutex)(&sdev->signal_lock);
	list_for_each_entry(queue, &sdev->signalled, signal_node)
		eventfd_signal(queue->eventfd);
}

/**
 * svadev_user_queue_signal() - wake who sleeps for a vector
 * @sdev: device
 * @irq: Linux interrupt number of the vector
 *
 * Does not ask which queue meant it: that is a trip to the device for each, and a sleeper that is
 * woken for nothing looks at its ring and sleeps again.
 *
 * Not in the hard interrupt: a wake-up may run a chain that a user has made, and there may be 255.
 *
 * Context: thread of the interrupt.
 */
void svadev_user_queue_signal(struct svadev_device *sdev, int irq)
{
	struct svadev_user_queue *queue;

	guard(mutex)(&sdev->signal_lock);
	list_for_each_entry(queue, &sdev->signalled, signal_node)
		if (queue->irq == irq)
			eventfd_signal(queue->eventfd);
}

/**
 * svadev_user_queue_irq() - a vector that user queues share
 * @irq: interrupt number
 * @data: the device
 *
 * Context: hard interrupt. The device lives: free_irq() comes before its last put.
 * Return: IRQ_WAKE_THREAD. MSI-X is not shared.
 */
irqreturn_t svadev_user_queue_irq(int irq, void *data)
{
	struct svadev_device *sdev = data;

	scoped_guard(spinlock_irqsave, &sdev->lock)
		sdev->stats.user_interrupts++;
	return IRQ_WAKE_THREAD;
}

/**
 * svadev_user_queue_irq_thread() - a vector that user queues share: wake their programs
 * @irq: interrupt number
 * @data: the device
 *
 * Context: thread; sleeps.
 * Return: IRQ_HANDLED.
 */
irqreturn_t svadev_user_queue_irq_thread(int irq, void *data)
{
	svadev_user_queue_signal(data, irq);
	return IRQ_HANDLED;
}

static void queue_vm_open(struct vm_area_struct *vma)
{
	struct svadev_user_queue *queue = vma->vm_private_data;

	kref_get(&queue->ref);
}

static void queue_vm_close(struct vm_area_struct *vma)
{
	queue_put(vma->vm_private_data);
}

static vm_fault_t queue_vm_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct svadev_user_queue *queue = vma->vm_private_data;
	unsigned long pfn = vmf->pgoff % PAGES_PER_QUEUE == WAKE_PAGE ? queue->wake_pfn :
									 queue->doorbell_pfn;

	/* The context lives: the vma holds its file. */
	guard(mutex)(&queue->context->sdev->map_lock);
	if (!queue->live)
		return VM_FAULT_SIGBUS;
	return vmf_insert_pfn(vma, vmf->address, pfn);
}

static const struct vm_operations_struct queue_vm_ops = {
	.open = queue_vm_open,
	.close = queue_vm_close,
	.fault = queue_vm_fault,
};

/**
 * svadev_user_queue_mmap() - map a queue's doorbell or wake page
 * @context: whose it is
 * @vma: one page, shared, at an offset that CREATE_QUEUE gave
 *
 * No page is inherited by fork(): the child is another address space, and a queue belongs to one.
 * Nor can a mapping grow. Uncached, as the kernel maps the BAR itself: x86 wants one memory type for
 * a page, and the wake page has to be so. It costs nothing where the BAR is memory of a virtual
 * machine: under KVM such memory is write-back whatever the guest says (it has no device that needs
 * otherwise), and TCG has no caches.
 *
 * Context: mmap_lock held for writing.
 * Return: 0; -EINVAL for no such queue or page, a private, executable or longer mapping; -EPERM for
 * another address space.
 */
int svadev_user_queue_mmap(struct svadev_context *context, struct vm_area_struct *vma)
{
	struct svadev_device *sdev = context->sdev;
	unsigned long number = vma->vm_pgoff / PAGES_PER_QUEUE;
	struct svadev_user_queue *queue;

	if (number >= SVADEV_MAX_QUEUES || vma_pages(vma) != 1 || !(vma->vm_flags & VM_SHARED) ||
	    (vma->vm_flags & VM_EXEC))
		return -EINVAL;

	guard(mutex)(&sdev->map_lock);
	queue = sdev->user_queues[number];
	if (!queue || queue->context != context || !queue->live)
		return -EINVAL;
	if (queue->mm != vma->vm_mm)
		return -EPERM;
	kref_get(&queue->ref);
	vma->vm_private_data = queue;
	vma->vm_ops = &queue_vm_ops;
	vm_flags_mod(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY, VM_MAYEXEC);
	vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
	return 0;
}
