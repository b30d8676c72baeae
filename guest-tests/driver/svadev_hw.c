// SPDX-License-Identifier: GPL-2.0-only
/* svadev: the function's registers: identify, start, stop, commands. */
#include <linux/bitfield.h>
#include <linux/io.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/iopoll.h>

#include "svadev.h"

/*
 * How often a register that changes soon is read, us. Every read is a trip out of the virtual
 * machine.
 */
#define POLL_INTERVAL_US 100

/* Longest COMMAND_LIMIT that is believed: an hour. */
#define MAX_COMMAND_LIMIT_MS (3600 * 1000)

/* The kernel queue's number. */
#define KERNEL_QUEUE 0

static void __iomem *queue_reg(struct svadev_device *sdev, unsigned int number, u32 offset)
{
	return sdev->regs + SVADEV_REG_QUEUES + number * SVADEV_REG_QUEUE_STRIDE + offset;
}

/* Takes effect when the queue is enabled. */
static void program_queue(struct svadev_device *sdev, unsigned int number, u64 sq, u64 cq, u32 size,
			  u32 pasid, u32 vector, u32 service, u32 moderation)
{
	writeq(sq, queue_reg(sdev, number, SVADEV_REG_QUEUE_SQ_BASE));
	writeq(cq, queue_reg(sdev, number, SVADEV_REG_QUEUE_CQ_BASE));
	writel(size, queue_reg(sdev, number, SVADEV_REG_QUEUE_SIZE));
	writel(pasid, queue_reg(sdev, number, SVADEV_REG_QUEUE_PASID));
	writel(vector, queue_reg(sdev, number, SVADEV_REG_QUEUE_VECTOR));
	writel(service, queue_reg(sdev, number, SVADEV_REG_QUEUE_SERVICE));
	writel(moderation, queue_reg(sdev, number, SVADEV_REG_QUEUE_MODERATION));
}

/*
 * Waits until a register's @mask bits read @want, at most @timeout_ms. A register that reads all ones
 * does not answer: the function was pulled out, or is in a reset. The registers that are polled have
 * reserved bits that are zero, so they never read all ones by themselves. The macro takes a timeout
 * of 0 for no limit.
 */
static int poll_reg(void __iomem *reg, u32 mask, u32 want, unsigned int timeout_ms)
{
	u64 timeout_us = max(timeout_ms, 1U) * 1000ULL;
	u32 value;
	int err;

	err = readl_poll_timeout(reg, value, (value & mask) == want || value == U32_MAX,
				 POLL_INTERVAL_US, timeout_us);
	return value == U32_MAX ? -ENODEV : err;
}

static int poll_status(struct svadev_device *sdev, u32 mask, u32 want)
{
	return poll_reg(sdev->regs + SVADEV_REG_STATUS, mask, want, svadev_hw_limit_ms(sdev));
}

/*
 * Whether the function answers at all. While its memory decoding is off, reads give all ones on most
 * machines, and zeros on QEMU, which a register's "not busy" must not be taken from.
 */
static bool answers(struct svadev_device *sdev)
{
	return readl(sdev->regs + SVADEV_REG_ID) == SVADEV_ID_MAGIC;
}

/**
 * svadev_hw_limit_ms() - how long to wait for an abort or a stop
 * @sdev: identified device
 *
 * The device may take COMMAND_LIMIT, for the kernel may take long to answer its page requests.
 * command_timeout_ms is what it gets beyond that: it looks at the clock between slices of work.
 *
 * Context: any.
 * Return: milliseconds.
 */
unsigned int svadev_hw_limit_ms(const struct svadev_device *sdev)
{
	return sdev->command_limit_ms + READ_ONCE(svadev_command_timeout_ms);
}

/**
 * svadev_hw_identify() - check that this is a device we know, and read its limits
 * @sdev: device with registers mapped
 *
 * What the device says is not trusted: everything that sizes something is checked here.
 *
 * Context: probe.
 * Return: 0, or -ENODEV for anything that is not our device, -EPROTONOSUPPORT for a version that is
 * too old or that we do not know.
 */
int svadev_hw_identify(struct svadev_device *sdev)
{
	u32 id = readl(sdev->regs + SVADEV_REG_ID);
	u32 max_ring_log2;

	if (id != SVADEV_ID_MAGIC) {
		dev_err(&sdev->pdev->dev, "ID register reads %#x, not %#x\n", id, SVADEV_ID_MAGIC);
		return -ENODEV;
	}
	sdev->version = readl(sdev->regs + SVADEV_REG_VERSION);
	if (sdev->version >> 16 != SVADEV_ABI_MAJOR ||
	    (sdev->version & 0xffff) < SVADEV_ABI_MINOR) {
		dev_err(&sdev->pdev->dev,
			"device has ABI version %u.%u, this driver knows %u.%u and later %u.x\n",
			sdev->version >> 16, sdev->version & 0xffff, SVADEV_ABI_MAJOR,
			SVADEV_ABI_MINOR, SVADEV_ABI_MAJOR);
		return -EPROTONOSUPPORT;
	}
	sdev->opcodes = readq(sdev->regs + SVADEV_REG_OPCODES);
	sdev->limits = readl(sdev->regs + SVADEV_REG_LIMITS);
	sdev->max_length = readq(sdev->regs + SVADEV_REG_MAX_LENGTH);
	sdev->max_scatter = readl(sdev->regs + SVADEV_REG_MAX_SCATTER);
	sdev->features = readq(sdev->regs + SVADEV_REG_FEATURES);
	sdev->command_limit_ms = readl(sdev->regs + SVADEV_REG_COMMAND_LIMIT);
	if (sdev->command_limit_ms > MAX_COMMAND_LIMIT_MS) {
		dev_warn(&sdev->pdev->dev, "COMMAND_LIMIT is %u ms: waiting for %u ms at most\n",
			 sdev->command_limit_ms, MAX_COMMAND_LIMIT_MS);
		sdev->command_limit_ms = MAX_COMMAND_LIMIT_MS;
	}
	max_ring_log2 = readl(sdev->regs + SVADEV_REG_MAX_RING_LOG2);
	if (max_ring_log2 < SVADEV_RING_LOG2_MIN || max_ring_log2 > SVADEV_RING_LOG2_MAX ||
	    FIELD_GET(SVADEV_LIMITS_QUEUES, sdev->limits) < 1 ||
	    FIELD_GET(SVADEV_LIMITS_VECTORS, sdev->limits) < 1) {
		dev_err(&sdev->pdev->dev, "senseless limits: %#x, rings of 2^%u\n", sdev->limits,
			max_ring_log2);
		return -ENODEV;
	}
	sdev->ring_log2 = min_t(u32, max_ring_log2, SVADEV_RING_LOG2);
	sdev->max_ring_log2 = max_ring_log2;
	sdev->queues = min3(FIELD_GET(SVADEV_LIMITS_QUEUES, sdev->limits), (u32)SVADEV_MAX_QUEUES,
			    (u32)(pci_resource_len(sdev->pdev, SVADEV_BAR_DOORBELLS) /
				  (2 * SVADEV_DOORBELL_STRIDE)));
	return 0;
}

/**
 * svadev_hw_start() - program the kernel queue and enable the function
 * @sdev: device with memory for rings; nothing in flight
 *
 * Context: probe, or @gate held for writing. Sleeps, at most twice svadev_hw_limit_ms().
 * Return: 0; -ETIMEDOUT, -ENODEV or -EIO with the function disabled again as far as it lets itself
 * be.
 */
int svadev_hw_start(struct svadev_device *sdev)
{
	u32 status;
	int err;

	err = -ENODEV;
	if (!answers(sdev))
		goto fail;
	/* A reset or a disable may still be under way, and would take what we program with it. */
	err = poll_status(sdev, SVADEV_STATUS_REG_BUSY, 0);
	if (err)
		goto fail;

	sdev->starts++;
	svadev_queue_reset(sdev);
	writel(0, sdev->doorbells + SVADEV_DOORBELL_SQ_TAIL);
	writel(0, sdev->doorbells + SVADEV_DOORBELL_CQ_HEAD);
	program_queue(sdev, KERNEL_QUEUE, sdev->sq_dma, sdev->cq_dma,
		      FIELD_PREP(SVADEV_QUEUE_SIZE_SQ_LOG2, sdev->ring_log2) |
		      FIELD_PREP(SVADEV_QUEUE_SIZE_CQ_LOG2, sdev->ring_log2),
		      0, SVADEV_QUEUE_VECTOR_ENABLE | FIELD_PREP(SVADEV_QUEUE_VECTOR_VECTOR, 0), 0, 0);

	sdev->quiet = false;
	writel(SVADEV_CONTROL_ENABLE, sdev->regs + SVADEV_REG_CONTROL);
	err = poll_status(sdev, SVADEV_STATUS_REG_ENABLED | SVADEV_STATUS_REG_BUSY,
			  SVADEV_STATUS_REG_ENABLED);
	if (err)
		goto fail;
	writel(SVADEV_QUEUE_CONTROL_ENABLE,
	       queue_reg(sdev, KERNEL_QUEUE, SVADEV_REG_QUEUE_CONTROL));
	status = svadev_hw_queue_status(sdev, KERNEL_QUEUE);
	if (status == U32_MAX || !(status & SVADEV_QUEUE_STATUS_ENABLED)) {
		dev_err(&sdev->pdev->dev, "the kernel queue does not start: status %#x\n", status);
		err = -EIO;
		goto fail;
	}
	spin_lock_irq(&sdev->lock);
	sdev->ring_live = true;
	spin_unlock_irq(&sdev->lock);
	return 0;

fail:
	dev_err(&sdev->pdev->dev, "cannot start the function: %d\n", err);
	writel(0, sdev->regs + SVADEV_REG_CONTROL);
	return err;
}

/**
 * svadev_hw_stop() - disable the function
 * @sdev: device
 *
 * On success the device accesses no memory any more, the IOMMU has answered all of its page
 * requests, and every completion that it will ever write is in the ring: svadev_device.quiet.
 *
 * Context: @gate held for writing, or remove of a device that nobody else can reach. Sleeps, at
 * most svadev_hw_limit_ms().
 * Return: 0; -EBUSY if it has stopped, but page requests are unanswered: another call waits for
 * them again; -ETIMEDOUT or -ENODEV if the device does not answer: it may still access memory then,
 * and only the IOMMU and the bus master bit stand in its way.
 */
int svadev_hw_stop(struct svadev_device *sdev)
{
	u32 status = readl(sdev->regs + SVADEV_REG_STATUS);
	int err;

	if (sdev->quiet)
		return 0;
	/* A disable waits for answers; of a function that is off, there is none to be had. */
	if (status != U32_MAX && !(status & SVADEV_STATUS_REG_ENABLED) &&
	    (status & SVADEV_STATUS_REG_TIMEOUT))
		writel(SVADEV_CONTROL_ENABLE, sdev->regs + SVADEV_REG_CONTROL);
	writel(0, sdev->regs + SVADEV_REG_CONTROL);
	err = poll_status(sdev, SVADEV_STATUS_REG_ENABLED | SVADEV_STATUS_REG_BUSY, 0);
	if (!err && (readl(sdev->regs + SVADEV_REG_STATUS) & SVADEV_STATUS_REG_TIMEOUT))
		err = -EBUSY;
	if (!answers(sdev))
		err = -ENODEV;
	sdev->quiet = !err;
	if (err && err != -ENODEV)
		dev_warn_ratelimited(&sdev->pdev->dev, "%s: %d\n",
				     err == -EBUSY ? "the kernel has not answered all page requests" :
						     "the function does not stop", err);
	return err;
}

static void __iomem *abort_reg(struct svadev_device *sdev, unsigned int slot)
{
	return sdev->regs + SVADEV_REG_ABORT + slot * sizeof(u32);
}

/**
 * svadev_hw_abort_start() - begin to end all work of a PASID on this function
 * @sdev: device, running
 * @slot: abort slot that nobody else uses
 * @pasid: the PASID
 *
 * Context: @gate held for reading. Does not sleep.
 * Return: 0; -EBUSY if an earlier abort in the slot, which its owner gave up, has not ended.
 */
int svadev_hw_abort_start(struct svadev_device *sdev, unsigned int slot, u32 pasid)
{
	lockdep_assert_held_read(&sdev->gate);

	if (readl(abort_reg(sdev, slot)) & SVADEV_ABORT_BUSY)
		return -EBUSY;
	writel(SVADEV_ABORT_BUSY | FIELD_PREP(SVADEV_ABORT_PASID, pasid), abort_reg(sdev, slot));
	return 0;
}

/**
 * svadev_hw_abort_result() - how an abort stands
 * @sdev: device, running and not restarted since svadev_hw_abort_start()
 * @slot: abort slot
 * @pasid: the PASID
 *
 * On success no access for the PASID is under way, the device has dropped its translations, its page
 * requests are answered, and each of its descriptors has a completion in the ring. This is the PASID
 * stop request that the SVA core wants before unbind, and more: the core's own drain of page
 * requests does not happen if the address space died before (Linux 7.3).
 *
 * Context: @gate held for reading. Does not sleep.
 * Return: 0; -EINPROGRESS; -EBUSY it ended, but page requests are unanswered; -ENODEV.
 */
int svadev_hw_abort_result(struct svadev_device *sdev, unsigned int slot, u32 pasid)
{
	u32 value;

	lockdep_assert_held_read(&sdev->gate);

	value = readl(abort_reg(sdev, slot));
	if (value == U32_MAX || FIELD_GET(SVADEV_ABORT_PASID, value) != pasid)
		return -ENODEV;
	if (value & SVADEV_ABORT_BUSY)
		return -EINPROGRESS;
	return value & SVADEV_ABORT_TIMEOUT ? -EBUSY : 0;
}

/**
 * svadev_hw_user_queue_start() - program a user queue and enable it
 * @sdev: device, running
 * @number: a queue that is off
 * @args: rings, checked
 * @pasid: whose they are
 * @vector: vector to raise for descriptors that want it
 *
 * The doorbell page is zeroed: nothing of an earlier owner is left, and the indexes start at 0.
 * ARMED, too, may be zeroed under an engine that sleeps: enabling wakes it, and it looks at the tail
 * before it sleeps again.
 *
 * Context: @gate held for reading; nobody else uses the number. Does not sleep.
 * Return: 0; -EIO if the queue does not start.
 */
int svadev_hw_user_queue_start(struct svadev_device *sdev, unsigned int number,
			       const struct svadev_create_queue *args, u32 pasid, u32 vector)
{
	u32 status;

	lockdep_assert_held_read(&sdev->gate);

	memset_io(sdev->doorbells + number * SVADEV_DOORBELL_STRIDE, 0, SVADEV_DOORBELL_STRIDE);
	program_queue(sdev, number, args->sq, args->cq,
		      FIELD_PREP(SVADEV_QUEUE_SIZE_SQ_LOG2, args->sq_log2) |
		      FIELD_PREP(SVADEV_QUEUE_SIZE_CQ_LOG2, args->cq_log2),
		      SVADEV_QUEUE_PASID_USER | FIELD_PREP(SVADEV_QUEUE_PASID_PASID, pasid),
		      SVADEV_QUEUE_VECTOR_ENABLE | FIELD_PREP(SVADEV_QUEUE_VECTOR_VECTOR, vector),
		      FIELD_PREP(SVADEV_QUEUE_SERVICE_PRIORITY, args->priority),
		      FIELD_PREP(SVADEV_QUEUE_MODERATION_INTERVAL_US, args->interrupt_interval_us) |
		      FIELD_PREP(SVADEV_QUEUE_MODERATION_COUNT, args->interrupt_count));
	writel(SVADEV_QUEUE_CONTROL_ENABLE, queue_reg(sdev, number, SVADEV_REG_QUEUE_CONTROL));
	status = svadev_hw_queue_status(sdev, number);
	/* Nobody has rung yet, so it cannot have halted. */
	if (status == U32_MAX || !(status & SVADEV_QUEUE_STATUS_ENABLED)) {
		dev_warn_ratelimited(&sdev->pdev->dev, "user queue %u does not start: status %#x\n",
				     number, status);
		writel(0, queue_reg(sdev, number, SVADEV_REG_QUEUE_CONTROL));
		return -EIO;
	}
	return 0;
}

/**
 * svadev_hw_user_queue_stop() - disable a user queue
 * @sdev: device, running
 * @number: the queue, running or halted
 *
 * On success the device does nothing for the queue any more.
 *
 * Context: @gate held for reading. Sleeps, at most the command timeout.
 * Return: 0; -ETIMEDOUT or -ENODEV.
 */
int svadev_hw_user_queue_stop(struct svadev_device *sdev, unsigned int number)
{
	int err;

	lockdep_assert_held_read(&sdev->gate);

	writel(0, queue_reg(sdev, number, SVADEV_REG_QUEUE_CONTROL));
	err = poll_reg(queue_reg(sdev, number, SVADEV_REG_QUEUE_STATUS),
		       SVADEV_QUEUE_STATUS_ENABLED | SVADEV_QUEUE_STATUS_HALTED, 0,
		       READ_ONCE(svadev_command_timeout_ms));
	if (!err && !answers(sdev))
		err = -ENODEV;
	if (err)
		dev_warn_ratelimited(&sdev->pdev->dev, "user queue %u does not stop: %d\n", number, err);
	return err;
}

/**
 * svadev_hw_queue_status() - a queue's QUEUE_STATUS
 * @sdev: device
 * @number: queue
 *
 * Context: as whoever may touch registers: @gate held, or probe.
 * Return: the register; all ones if the function does not answer.
 */
u32 svadev_hw_queue_status(struct svadev_device *sdev, unsigned int number)
{
	return readl(queue_reg(sdev, number, SVADEV_REG_QUEUE_STATUS));
}

/**
 * svadev_hw_queue_fault_address() - the address whose fault halted a queue
 * @sdev: device
 * @number: queue
 *
 * Context: as svadev_hw_queue_status().
 * Return: the register.
 */
u64 svadev_hw_queue_fault_address(struct svadev_device *sdev, unsigned int number)
{
	return readq(queue_reg(sdev, number, SVADEV_REG_QUEUE_FAULT_ADDRESS));
}
