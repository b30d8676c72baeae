// SPDX-License-Identifier: GPL-2.0-only
/* svadev: /dev/svadevN. uapi/svadev.h documents what each operation promises. */
#include <linux/bitfield.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/poll.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "svadev.h"

/*
 * Descriptors copied from user space, and completions copied to it, with the locks taken once. On
 * the stack.
 */
#define BATCH 16

static int svadev_open(struct inode *inode, struct file *file)
{
	/* The inode's reference to the cdev holds the device until release has returned. */
	struct svadev_device *sdev = container_of(inode->i_cdev, struct svadev_device, cdev);
	struct svadev_context *context = svadev_context_create(sdev, file->f_mapping);

	if (IS_ERR(context))
		return PTR_ERR(context);
	file->private_data = context;
	return nonseekable_open(inode, file);
}

static int svadev_release(struct inode *inode, struct file *file)
{
	svadev_context_destroy(file->private_data);
	return 0;
}

/*
 * Reads an argument structure by the rule of argsz: at least @min_size, zero beyond what we know.
 * Every structure starts with argsz, which the program may change between our two looks: the first
 * one, which was checked, is what stands in @args.
 */
static int get_args(void *args, size_t size, size_t min_size, void __user *user)
{
	u32 argsz;
	int err;

	if (get_user(argsz, (u32 __user *)user))
		return -EFAULT;
	if (argsz < min_size)
		return -EINVAL;
	if (argsz > PAGE_SIZE)
		return -E2BIG;
	err = copy_struct_from_user(args, size, user, argsz);
	*(u32 *)args = argsz;
	return err;
}

static long query(struct svadev_context *context, void __user *user)
{
	struct svadev_device *sdev = context->sdev;
	struct pci_dev *pdev = sdev->pdev;
	struct svadev_query args;
	u32 argsz;
	int err;

	err = get_args(&args, sizeof(args), offsetofend(struct svadev_query, resets), user);
	if (err)
		return err;
	if (args.flags)
		return -EINVAL;
	if (READ_ONCE(sdev->state) == SVADEV_GONE)
		return -ENODEV;

	argsz = args.argsz;
	args = (struct svadev_query) {
		.argsz = sizeof(args),
		.uapi_version = SVADEV_UAPI_VERSION,
		.device_version = sdev->version,
		.opcodes = sdev->opcodes,
		.max_length = sdev->max_length,
		.max_scatter = sdev->max_scatter,
		.max_in_flight = SVADEV_MAX_IN_FLIGHT,
		.max_uncollected = SVADEV_MAX_UNCOLLECTED,
		.queues = sdev->queues,
		.engines = FIELD_GET(SVADEV_LIMITS_ENGINES, sdev->limits),
		.max_user_queues = SVADEV_MAX_USER_QUEUES,
		.pci_address = pci_domain_nr(pdev->bus) << 16 | pci_dev_id(pdev),
		.features = sdev->features,
		.pci_domain = pci_domain_nr(pdev->bus),
	};
	scoped_guard(spinlock_irq, &sdev->lock) {
		args.state = sdev->state;
		args.pasid = context->pasid;
		args.in_flight = context->in_flight_count;
		args.uncollected = context->uncollected;
		args.resets = sdev->stats.resets;
		args.user_queues = sdev->stats.user_queues;
	}
	return copy_struct_to_user(user, argsz, &args, sizeof(args), NULL);
}

static long bind(struct svadev_context *context, bool nonblock, void __user *user)
{
	struct svadev_bind args;
	u32 pasid;
	int err;

	err = get_args(&args, sizeof(args), offsetofend(struct svadev_bind, reserved), user);
	if (err)
		return err;
	if (args.flags || args.reserved)
		return -EINVAL;
	err = svadev_context_bind(context, nonblock, &pasid);
	if (err)
		return err;
	/* If this fails the context is bound all the same; QUERY tells, UNBIND undoes. */
	return put_user(pasid, &((struct svadev_bind __user *)user)->pasid);
}

static long unbind(struct svadev_context *context, void __user *user)
{
	struct svadev_unbind args;
	int err;

	err = get_args(&args, sizeof(args), offsetofend(struct svadev_unbind, flags), user);
	if (err)
		return err;
	if (args.flags)
		return -EINVAL;
	return svadev_context_unbind(context);
}

/* Pushes as many of @count descriptors as there is room for; takes their requests. */
static int push_batch(struct svadev_context *context, bool raw, struct svadev_desc *descs,
		      struct svadev_request **requests, u32 count)
{
	struct svadev_device *sdev = context->sdev;
	u32 pushed;
	int err = 0;

	lockdep_assert_held_read(&sdev->gate);

	scoped_guard(spinlock_irq, &sdev->lock) {
		/*
		 * The address space stays the caller's, and the PASID bound, while the lock is
		 * held: unbind clears accepting under it.
		 */
		if (raw)
			err = context->stopping ? -EINVAL : 0;
		else
			err = svadev_context_may_submit(context);
		for (pushed = 0; !err && pushed < count; pushed++) {
			err = svadev_queue_room(context);
			if (err)
				break;
			if (!raw) {
				descs[pushed].pasid = SVADEV_DESC_PASID_VALID | context->pasid;
				/*
				 * Other address spaces than the program's are not its to name:
				 * the device refuses what is reserved.
				 */
				if (descs[pushed].spaces)
					descs[pushed].spaces = U16_MAX;
			}
			svadev_queue_push(context, requests[pushed], &descs[pushed]);
			requests[pushed] = NULL;
		}
		if (pushed)
			svadev_queue_publish(sdev);
	}
	if (pushed)
		svadev_queue_wake(sdev);
	return pushed ?: err;
}

/*
 * Whether a SUBMIT that found no room would now find room, or an error. What is looked at is the
 * lock's and read without it: room_wait is woken after each change, and a wrong guess only means
 * another try.
 */
static bool try_again(struct svadev_context *context, bool raw)
{
	struct svadev_device *sdev = context->sdev;
	bool room = READ_ONCE(context->in_flight_count) < SVADEV_MAX_IN_FLIGHT &&
		    READ_ONCE(context->user->in_flight) < READ_ONCE(sdev->free_count);
	bool open = raw ? !READ_ONCE(context->stopping) : READ_ONCE(context->accepting);

	return room || READ_ONCE(sdev->state) != SVADEV_RUNNING || !open;
}

/* Waits until trying again makes sense. */
static int wait_for_room(struct svadev_context *context, bool raw)
{
	wait_queue_head_t *room_wait = &context->sdev->room_wait;

	return wait_event_interruptible(*room_wait, try_again(context, raw)) ? -ERESTARTSYS : 0;
}

/* One batch: 0 < result <= count descriptors were taken, or an error says why none. */
static int submit_batch(struct svadev_context *context, bool raw, bool nonblock,
			struct svadev_desc *descs, u32 count)
{
	struct svadev_request *requests[BATCH];
	int result;

	if (!kmem_cache_alloc_bulk(svadev_request_cache, GFP_KERNEL_ACCOUNT, count,
				   (void **)requests))
		return -ENOMEM;
	for (;;) {
		result = svadev_enter(context->sdev, nonblock);
		if (result)
			break;
		result = push_batch(context, raw, descs, requests, count);
		svadev_leave(context->sdev);
		if (result != -EAGAIN || nonblock)
			break;
		result = wait_for_room(context, raw);
		if (result)
			break;
	}
	for (u32 i = 0; i < count; i++)
		if (requests[i])
			kmem_cache_free(svadev_request_cache, requests[i]);
	return result;
}

static long submit(struct svadev_context *context, bool nonblock, void __user *user)
{
	const struct svadev_desc __user *user_descs;
	struct svadev_desc descs[BATCH];
	struct svadev_submit args;
	u32 taken = 0;
	bool raw;
	int err;

	err = get_args(&args, sizeof(args), offsetofend(struct svadev_submit, reserved), user);
	if (err)
		return err;
	if ((args.flags & ~SVADEV_SUBMIT_RAW) || args.reserved)
		return -EINVAL;
	raw = args.flags & SVADEV_SUBMIT_RAW;
	if (raw) {
		if (!svadev_raw || !capable(CAP_SYS_RAWIO))
			return -EPERM;
		/* Without a PASID it reaches whatever DMA reaches: as much as /dev/mem. */
		err = security_locked_down(LOCKDOWN_DEV_MEM);
		if (err)
			return err;
	}
	/* The result has to fit. */
	args.count = min_t(u32, args.count, INT_MAX);
	user_descs = u64_to_user_ptr(args.descs);

	while (taken < args.count) {
		u32 count = min_t(u32, args.count - taken, BATCH);
		int result;

		result = 0;
		if (copy_from_user(descs, user_descs + taken, count * sizeof(*descs)))
			result = -EFAULT;
		for (u32 i = 0; !result && !raw && i < count; i++) {
			if (!descs[i].pasid)
				continue;
			/* Those before it are good: take them. */
			count = i;
			result = i ? 0 : -EINVAL;
			break;
		}
		/* Once something is taken, never wait: the caller wants to know about it first. */
		if (!result)
			result = submit_batch(context, raw, nonblock || taken, descs, count);
		if (result < 0)
			return taken ?: result;
		taken += result;
		if (result < BATCH)
			break;
	}
	return taken;
}

/*
 * Takes up to @capacity completions to user space. Another WAIT may do so at the same time; what it
 * takes is not ours.
 *
 * Return: how many were stored, or -EFAULT if none was for that reason.
 */
static int collect(struct svadev_context *context, struct svadev_completion __user *user,
		   u32 capacity)
{
	struct svadev_device *sdev = context->sdev;
	struct svadev_request *request, *next;
	u32 stored = 0;
	int err = 0;

	while (!err && stored < capacity) {
		u32 batch = 0, copied = 0;
		LIST_HEAD(list);

		scoped_guard(spinlock_irq, &sdev->lock) {
			list_for_each_entry_safe(request, next, &context->done, node) {
				if (batch == min_t(u32, capacity - stored, BATCH))
					break;
				list_move_tail(&request->node, &list);
				batch++;
			}
			WRITE_ONCE(context->uncollected, context->uncollected - batch);
		}
		if (!batch)
			break;
		list_for_each_entry_safe(request, next, &list, node) {
			if (copy_to_user(user + stored, &request->completion,
					 sizeof(request->completion))) {
				err = -EFAULT;
				break;
			}
			list_del(&request->node);
			kmem_cache_free(svadev_request_cache, request);
			stored++;
			copied++;
		}
		if (err) {
			guard(spinlock_irq)(&sdev->lock);
			list_splice(&list, &context->done);
			WRITE_ONCE(context->uncollected, context->uncollected + batch - copied);
		}
	}
	/*
	 * For others who collect, if some went back, and for who polls for room, which uncollected
	 * completions take.
	 */
	wake_up_all(&context->wait);
	return stored ?: err;
}

/* What WAIT says when there is nothing to give. */
static int nothing_to_collect(struct svadev_context *context)
{
	struct svadev_device *sdev = context->sdev;

	guard(spinlock_irq)(&sdev->lock);
	if (sdev->state == SVADEV_GONE)
		return -ENODEV;
	if (!context->in_flight_count && svadev_context_mm_dead(context))
		return -ESRCH;
	return 0;
}

static bool wait_is_over(struct svadev_context *context, u32 min)
{
	/*
	 * A stale answer is harmless: an early end gives out fewer, which WAIT may; every change
	 * wakes us to look again.
	 */
	return READ_ONCE(context->uncollected) >= min || !READ_ONCE(context->in_flight_count);
}

static long wait(struct svadev_context *context, void __user *user)
{
	struct svadev_wait args;
	int err, result;

	err = get_args(&args, sizeof(args), offsetofend(struct svadev_wait, min), user);
	if (err)
		return err;
	if (args.flags || args.min > args.capacity)
		return -EINVAL;

	svadev_queue_poll(context->sdev);
	err = 0;
	if (args.timeout_ns < 0)
		err = wait_event_interruptible(context->wait, wait_is_over(context, args.min));
	else if (args.timeout_ns && !wait_is_over(context, args.min))
		err = wait_event_interruptible_hrtimeout(context->wait,
							 wait_is_over(context, args.min),
							 ns_to_ktime(args.timeout_ns));

	result = collect(context, u64_to_user_ptr(args.completions),
			 min_t(u32, args.capacity, INT_MAX));
	if (result || !args.capacity)
		return result;
	/* With a limit not restarted: the time that has passed would start again. As epoll_wait(2). */
	if (err == -ERESTARTSYS)
		return args.timeout_ns < 0 ? -ERESTARTSYS : -EINTR;
	return nothing_to_collect(context);
}

static long create_queue(struct svadev_context *context, bool nonblock, void __user *user)
{
	struct svadev_create_queue args;
	u32 argsz;
	int err;

	err = get_args(&args, sizeof(args), offsetofend(struct svadev_create_queue, wake_offset),
		       user);
	if (err)
		return err;
	if (args.flags || args.queue || args.doorbell_offset || args.wake_offset)
		return -EINVAL;
	argsz = args.argsz;
	err = svadev_user_queue_create(context, &args, nonblock);
	if (err)
		return err;
	args.argsz = sizeof(args);
	err = copy_struct_to_user(user, argsz, &args, sizeof(args), NULL);
	/*
	 * Without its name the program could do nothing with it. The context's mutex is not held
	 * here, for the copy may wait for ever on the program's own userfaultfd. Another thread may
	 * have guessed the name and been faster: then there is none to destroy.
	 */
	if (err)
		svadev_user_queue_destroy(context, args.queue);
	return err;
}

static long destroy_queue(struct svadev_context *context, void __user *user)
{
	struct svadev_destroy_queue args;
	int err;

	err = get_args(&args, sizeof(args), offsetofend(struct svadev_destroy_queue, reserved),
		       user);
	if (err)
		return err;
	if (args.flags || args.reserved)
		return -EINVAL;
	return svadev_user_queue_destroy(context, args.queue);
}

static long query_queue(struct svadev_context *context, void __user *user)
{
	struct svadev_query_queue args;
	u32 argsz;
	int err;

	err = get_args(&args, sizeof(args), offsetofend(struct svadev_query_queue, fault_address),
		       user);
	if (err)
		return err;
	if (args.flags || args.reserved)
		return -EINVAL;
	argsz = args.argsz;
	err = svadev_user_queue_query(context, &args);
	if (err)
		return err;
	args.argsz = sizeof(args);
	return copy_struct_to_user(user, argsz, &args, sizeof(args), NULL);
}

static long plant_swap(void __user *user)
{
	struct svadev_plant_swap args;
	int err;

	if (!svadev_plant)
		return -ENOTTY;
	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	err = get_args(&args, sizeof(args), offsetofend(struct svadev_plant_swap, address), user);
	if (err)
		return err;
	if (args.flags)
		return -EINVAL;
	return svadev_plant_swap(args.address);
}

static long svadev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct svadev_context *context = file->private_data;
	bool nonblock = file->f_flags & O_NONBLOCK;
	void __user *user = (void __user *)arg;

	switch (cmd) {
	case SVADEV_IOC_QUERY:
		return query(context, user);
	case SVADEV_IOC_BIND:
		return bind(context, nonblock, user);
	case SVADEV_IOC_UNBIND:
		return unbind(context, user);
	case SVADEV_IOC_SUBMIT:
		return submit(context, nonblock, user);
	case SVADEV_IOC_WAIT:
		return wait(context, user);
	case SVADEV_IOC_CREATE_QUEUE:
		return create_queue(context, nonblock, user);
	case SVADEV_IOC_DESTROY_QUEUE:
		return destroy_queue(context, user);
	case SVADEV_IOC_QUERY_QUEUE:
		return query_queue(context, user);
	case SVADEV_IOC_PLANT_SWAP:
		return plant_swap(user);
	default:
		return -ENOTTY;
	}
}

static __poll_t svadev_poll(struct file *file, poll_table *table)
{
	struct svadev_context *context = file->private_data;
	struct svadev_device *sdev = context->sdev;
	__poll_t ready = 0;

	poll_wait(file, &context->wait, table);
	poll_wait(file, &sdev->room_wait, table);
	svadev_queue_poll(sdev);

	guard(spinlock_irq)(&sdev->lock);
	if (context->uncollected)
		ready |= EPOLLIN | EPOLLRDNORM;
	if (sdev->state == SVADEV_GONE)
		ready |= EPOLLERR | EPOLLHUP;
	else if (sdev->state == SVADEV_FAILED)
		ready |= EPOLLERR;
	if (!context->in_flight_count && svadev_context_mm_dead(context))
		ready |= EPOLLHUP;
	else if (sdev->state == SVADEV_RUNNING && !svadev_queue_room(context))
		ready |= EPOLLOUT | EPOLLWRNORM;
	return ready;
}

static int svadev_mmap(struct file *file, struct vm_area_struct *vma)
{
	return svadev_user_queue_mmap(file->private_data, vma);
}

const struct file_operations svadev_fops = {
	.owner = THIS_MODULE,
	.open = svadev_open,
	.release = svadev_release,
	.unlocked_ioctl = svadev_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.poll = svadev_poll,
	.mmap = svadev_mmap,
};
