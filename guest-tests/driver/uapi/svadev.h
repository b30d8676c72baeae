/* SPDX-License-Identifier: ((GPL-2.0-only WITH Linux-syscall-note) OR MIT) */
/*
 * svadev: user-space interface of the shared-virtual-addressing accelerator, /dev/svadevN.
 *
 * A program opens the device, binds its address space (BIND), hands descriptors that hold its own
 * plain pointers to the device (SUBMIT) and collects completions (WAIT, poll). One open file is one
 * *context*: its binding, its work in flight and its completions. dup(), fork() and SCM_RIGHTS
 * share a context; open() makes a new one.
 *
 * What every operation has in common:
 *  - Structures start with @argsz, the size that the program knows, and @flags. The kernel takes
 *    min(argsz, its own size) bytes and writes back as many. Fields beyond that are zero for the
 *    kernel; a program that sets a field that the kernel does not know gets E2BIG. An @argsz below
 *    version 1 of the structure, an unknown flag and a reserved field that is not zero are EINVAL.
 *    Sizes are in @argsz, not in the request number, so numbers never change.
 *  - Errors: EFAULT a pointer of the call itself is bad (a bad pointer in a descriptor is a
 *    completion, not an error); EINVAL as above or as said at each operation; EINTR a signal came
 *    before anything was done, and its handler is without SA_RESTART (else the call is restarted; see
 *    WAIT); EMFILE the user has too many files of the function open; ENODEV the device was removed
 *    or its driver unbound: for ever, close the file; EIO the device stopped answering and is out of
 *    service until it is reset; ENOTTY unknown request.
 *  - A reset of the function (echo 1 > /sys/bus/pci/devices/.../reset) completes the work in flight
 *    as SVADEV_STATUS_ABORTED and keeps bindings. Calls made during the reset wait for its end
 *    (EAGAIN under O_NONBLOCK).
 *
 * Whose memory: a context belongs to the address space (mm) that bound it, not to the process that
 * holds the file.
 *  - fork(): the child inherits the file, not the binding: SUBMIT and UNBIND give it EPERM.
 *  - exec() and exit(): the address space is gone. Work in flight ends with
 *    SVADEV_STATUS_TRANSLATION_BLOCKED, SVADEV_STATUS_PAGE_FAULT or SVADEV_STATUS_ABORTED. Whoever
 *    still holds the file gets ESRCH from SUBMIT and, once the remaining completions are collected,
 *    from WAIT; UNBIND succeeds, and BIND may then bind the caller.
 *  - threads and vfork() share the address space and therefore the right to submit.
 */
#ifndef _UAPI_SVADEV_H
#define _UAPI_SVADEV_H

#include <linux/ioctl.h>
#include <linux/types.h>

/*
 * Version of this interface, in struct svadev_query. Grows when something is added; nothing is ever
 * taken away. 2: user queues. 3: priorities and interrupt moderation of user queues; PREFETCH and
 * DROP. 4: features, state and PCI domain in QUERY, whose count of queues is that of usable ones.
 */
#define SVADEV_UAPI_VERSION 4

/* Most of one context's descriptors that can be in flight, whatever the device can hold. */
#define SVADEV_MAX_IN_FLIGHT 256

/* Most descriptors of one context in flight or completed and not collected. */
#define SVADEV_MAX_UNCOLLECTED 4096

/* Most user queues of one context, if the function has as many. */
#define SVADEV_MAX_USER_QUEUES 16

/* Work: the device's own layouts, little-endian. */

/* Opcodes, svadev_desc.opcode. */
#define SVADEV_OP_NOP 0		/* Complete at once. */
#define SVADEV_OP_DRAIN 1	/* Complete when everything before it in the queue has completed. */
#define SVADEV_OP_COPY 2	/* Copy length bytes from src to dst; they must not overlap. */
#define SVADEV_OP_FILL 3	/* Fill length bytes at dst with operand, lowest byte first. */
#define SVADEV_OP_COMPARE 4	/* Compare src and dst; result: offset of the first difference. */
#define SVADEV_OP_CRC32C 5	/* CRC-32C of length bytes at src, from operand (0 to start). */
#define SVADEV_OP_PREFETCH 6	/* Translate src ahead, for writing if operand is 1; since version 3. */
#define SVADEV_OP_DROP 7	/* Forget the device's translations of src; since version 3. */

/* Flags, svadev_desc.flags. */
#define SVADEV_DESC_INTERRUPT (1U << 0)	/* Raise the queue's vector; the driver always sets it. */
#define SVADEV_DESC_FENCE (1U << 1)	/* Start when everything before it has completed. */
#define SVADEV_DESC_STOP_ON_FAULT (1U << 2)	/* Report a missing page, do not ask for it. */
#define SVADEV_DESC_SRC_LIST (1U << 3)	/* src is the address of src_entries struct svadev_sge. */
#define SVADEV_DESC_DST_LIST (1U << 4)	/* dst is the address of dst_entries struct svadev_sge. */

/* svadev_desc.pasid; only with SVADEV_SUBMIT_RAW, else zero. */
#define SVADEV_DESC_PASID_MASK 0xfffffU
#define SVADEV_DESC_PASID_VALID (1U << 31)

/**
 * struct svadev_desc - one piece of work
 * @opcode: SVADEV_OP_*
 * @flags: SVADEV_DESC_*
 * @spaces: zero; with SVADEV_SUBMIT_RAW what kind of address each operand has
 * @pasid: zero: the driver writes the context's PASID here (see SVADEV_SUBMIT_RAW for the
 *   exception)
 * @cookie: returned in the completion; not looked at
 * @src: source address, or address of the source list
 * @dst: destination address, or address of the destination list
 * @length: bytes, 1 to max_length for opcodes that have operands, else zero; a list's lengths add
 *   up to it
 * @operand: pattern of FILL, starting value of CRC32C, 1 in a PREFETCH for writing, else zero
 * @src_entries: entries of the source list, zero without one
 * @dst_entries: entries of the destination list, zero without one
 * @reserved1: zero
 *
 * The driver looks at @pasid and @cookie only. Everything else is the device's to check: a bad
 * descriptor is not an error of SUBMIT but a completion with SVADEV_STATUS_BAD_*.
 */
struct svadev_desc {
	__u8 opcode;
	__u8 flags;
	__u16 spaces;
	__u32 pasid;
	__u64 cookie;
	__u64 src;
	__u64 dst;
	__u64 length;
	__u64 operand;
	__u32 src_entries;
	__u32 dst_entries;
	__u64 reserved1;
};

/**
 * struct svadev_sge - one piece of a scatter list
 * @address: address of the first byte
 * @length: bytes, not 0
 */
struct svadev_sge {
	__u64 address;
	__u64 length;
};

/* svadev_completion.status. */
#define SVADEV_STATUS_SUCCESS 0
#define SVADEV_STATUS_MISMATCH 0x01	/* COMPARE found a difference; result says where. */
#define SVADEV_STATUS_BAD_OPCODE 0x10
#define SVADEV_STATUS_BAD_FLAGS 0x11	/* Unknown flag, or one that the opcode has no use for. */
#define SVADEV_STATUS_BAD_LENGTH 0x12
#define SVADEV_STATUS_BAD_RESERVED 0x13	/* A field that the opcode does not use is not zero. */
#define SVADEV_STATUS_OVERLAP 0x14
#define SVADEV_STATUS_BAD_LIST 0x15
#define SVADEV_STATUS_BAD_ADDRESS 0x16	/* An operand wraps around the address space. */
#define SVADEV_STATUS_PAGE_FAULT 0x20	/* The kernel said invalid, or SVADEV_DESC_STOP_ON_FAULT. */
#define SVADEV_STATUS_PAGE_REQUEST_FAILED 0x21	/* Page requests are off for the whole function. */
#define SVADEV_STATUS_PAGE_REQUEST_TIMEOUT 0x22	/* No answer to a page request in time. */
#define SVADEV_STATUS_TRANSLATION_BLOCKED 0x23	/* Nothing is bound there. */
#define SVADEV_STATUS_MEMORY_ERROR 0x24	/* The translation leads to no memory. */
#define SVADEV_STATUS_ABORTED 0x30	/* PASID aborted, function reset or removed. */

/* svadev_completion.fault. */
#define SVADEV_FAULT_ADDRESS_VALID (1U << 0)	/* result is the address at fault. */
#define SVADEV_FAULT_WRITE (1U << 1)	/* The access was a write. */

/**
 * struct svadev_completion - what became of a descriptor
 * @cookie: the descriptor's
 * @bytes_done: everything below this offset was done; nothing at or above it is promised
 * @result: CRC of CRC32C (low 32 bits), offset of COMPARE's first difference, or the fault's
 *   address if @fault says so
 * @status: SVADEV_STATUS_*
 * @fault: SVADEV_FAULT_*
 * @reserved: zero
 * @seq: the ring's own; zero in what WAIT returns
 */
struct svadev_completion {
	__u64 cookie;
	__u64 bytes_done;
	__u64 result;
	__u16 status;
	__u8 fault;
	__u8 reserved;
	__u32 seq;
};

/* Operations. */

#define SVADEV_IOC_MAGIC 0xBB

/* svadev_query.features: what this function can do, as the machine is. */
#define SVADEV_FEATURES_PROCESS_ADDRESSES (1U << 0)	/* BIND can work: ATS and PASID. */
#define SVADEV_FEATURES_PAGE_REQUESTS (1U << 1)	/* Pages need not be present: PRI. */

/* svadev_query.state. */
#define SVADEV_STATE_RUNNING 0
#define SVADEV_STATE_RESETTING 1	/* Until the reset is over: calls wait. */
#define SVADEV_STATE_FAILED 2	/* Until a reset succeeds: calls give EIO. */

/**
 * struct svadev_query - SVADEV_IOC_QUERY
 * @argsz: size of this structure
 * @flags: zero
 * @uapi_version: out: SVADEV_UAPI_VERSION
 * @device_version: out: the device's ABI version, major << 16 | minor
 * @opcodes: out: bit n set: opcode n is implemented
 * @max_length: out: longest operand, bytes
 * @max_scatter: out: most entries of a scatter list
 * @max_in_flight: out: most descriptors of one context in flight
 * @max_uncollected: out: most descriptors of one context in flight or completed and not collected
 * @queues: out: queues of the function that can be had, the kernel's own among them
 * @engines: out: engines of the function
 * @pci_address: out: domain << 16 | bus << 8 | device << 3 | function; of the domain its low 16 bits
 * @pasid: out: the context's PASID, zero if it is not bound
 * @in_flight: out: descriptors of this context in flight
 * @uncollected: out: completions of this context that WAIT has not returned
 * @resets: out: times the function was reset since its driver was bound
 * @max_user_queues: out: most user queues of one context; since version 2
 * @user_queues: out: user queues of all contexts of the function; since version 2
 * @features: out: SVADEV_FEATURES_*; since version 4, as all below
 * @pci_domain: out: the whole domain
 * @state: out: SVADEV_STATE_*
 *
 * Never waits. Any holder of the file may ask. Errors: ENODEV.
 */
struct svadev_query {
	__u32 argsz;
	__u32 flags;
	__u32 uapi_version;
	__u32 device_version;
	__u64 opcodes;
	__u64 max_length;
	__u32 max_scatter;
	__u32 max_in_flight;
	__u32 max_uncollected;
	__u32 queues;
	__u32 engines;
	__u32 pci_address;
	__u32 pasid;
	__u32 in_flight;
	__u32 uncollected;
	__u32 resets;
	__u32 max_user_queues;
	__u32 user_queues;
	__u64 features;
	__u32 pci_domain;
	__u32 state;
};

/**
 * struct svadev_bind - SVADEV_IOC_BIND: let the device use the caller's address space
 * @argsz: size of this structure
 * @flags: zero
 * @pasid: out: the address space's PASID, the same on every function that it is bound to
 * @reserved: zero
 *
 * Errors: EBUSY the context is bound, or the kernel refuses (an address space whose pointers carry
 * tags, or a group in recovery); EAGAIN reset under way and O_NONBLOCK; EOPNOTSUPP, ENODEV or
 * EINVAL the kernel, the IOMMU or the function does not do shared virtual addressing; ENOSPC no
 * PASID left; EOVERFLOW the PASID is too wide for the function.
 */
struct svadev_bind {
	__u32 argsz;
	__u32 flags;
	__u32 pasid;
	__u32 reserved;
};

/**
 * struct svadev_unbind - SVADEV_IOC_UNBIND: undo BIND, exactly once
 * @argsz: size of this structure
 * @flags: zero
 *
 * When this returns no access of the device for this context is under way or will start, and all of
 * its work has a completion. If it was the last context of the address space on the function, work
 * in flight is aborted; else the call waits for the context's own work, for a bounded time, and
 * aborts after that. Completions can still be collected.
 *
 * Bounded by the driver's drain_timeout_ms and by the time that the device may wait for a page. Signals
 * do not interrupt it once it has begun; EINTR means that nothing was done yet.
 *
 * Errors: EINVAL the context is not bound, and nothing changes; EPERM the caller is neither in the
 * address space that bound it nor is that one dead; EBUSY the kernel has not answered a page request
 * of the address space: it is still bound, takes no more work, and UNBIND can be tried again; EIO,
 * ETIMEDOUT the same, since the device does not answer. A file that is closed then is unbound later,
 * by the driver itself.
 */
struct svadev_unbind {
	__u32 argsz;
	__u32 flags;
};

/*
 * A test hook. It needs CAP_SYS_RAWIO, a module that was loaded with raw=1, and a kernel that is not
 * locked down (kernel_lockdown(7)): it reaches all that /dev/mem reaches. svadev_desc.pasid is the
 * caller's, so a descriptor can name any PASID, or none (SVADEV_DESC_PASID_VALID clear: the addresses
 * are then the function's DMA addresses). The context need not be bound. The driver still replaces the cookie on the way (the
 * completion has the caller's) and sets SVADEV_DESC_INTERRUPT.
 */
#define SVADEV_SUBMIT_RAW (1U << 0)

/**
 * struct svadev_submit - SVADEV_IOC_SUBMIT: hand descriptors to the device
 * @argsz: size of this structure
 * @flags: SVADEV_SUBMIT_*
 * @descs: address of @count struct svadev_desc
 * @count: descriptors there; 0 does nothing
 * @reserved: zero
 *
 * Returns how many were taken, from the start, as io_submit() does: an error is returned only if
 * the first one is not taken. Without room for the first, waits for room, or gives EAGAIN if the
 * file is O_NONBLOCK.
 *
 * Errors: EINVAL the context is not bound, or a descriptor's pasid is not zero; EPERM the caller's
 * address space is not the one that bound, or RAW is not allowed; ESRCH the address space
 * that bound is dead; EAGAIN no room; ENOBUFS @max_uncollected reached, WAIT first (waiting would
 * not help, so this does not block).
 */
struct svadev_submit {
	__u32 argsz;
	__u32 flags;
	__u64 descs;
	__u32 count;
	__u32 reserved;
};

/**
 * struct svadev_wait - SVADEV_IOC_WAIT: collect completions
 * @argsz: size of this structure
 * @flags: zero
 * @completions: address of @capacity struct svadev_completion
 * @timeout_ns: longest wait, relative, monotonic clock; 0 does not wait, negative waits for ever
 * @capacity: room there
 * @min: wait until so many are ready, at most @capacity
 *
 * Returns how many were stored, oldest completion first. Fewer than @min, or 0, means that the time
 * is over, that a signal came after the first, or that nothing of this context is in flight any
 * more. A completion is returned once; if @completions cannot be written it stays and the call
 * gives EFAULT. Any holder of the file may collect.
 *
 * Errors: EINTR a signal came and nothing is ready. With a limit the call is not restarted, even after
 * SIGSTOP and SIGCONT, as epoll_wait(2): the time that has passed would start again; ESRCH nothing is
 * ready or in flight and the address space that bound is dead; ENODEV the device is gone and nothing
 * is ready (completions that are ready are still given out).
 *
 * poll(2): POLLIN completions are ready; POLLOUT SUBMIT would take at least one; POLLERR the function
 * is out of service until a reset succeeds; POLLHUP nothing is in flight and the address space that
 * bound is dead; POLLERR | POLLHUP the device is gone.
 */
struct svadev_wait {
	__u32 argsz;
	__u32 flags;
	__u64 completions;
	__s64 timeout_ns;
	__u32 capacity;
	__u32 min;
};

#define SVADEV_IOC_QUERY _IO(SVADEV_IOC_MAGIC, 0x00)
#define SVADEV_IOC_BIND _IO(SVADEV_IOC_MAGIC, 0x01)
#define SVADEV_IOC_UNBIND _IO(SVADEV_IOC_MAGIC, 0x02)
#define SVADEV_IOC_SUBMIT _IO(SVADEV_IOC_MAGIC, 0x03)
#define SVADEV_IOC_WAIT _IO(SVADEV_IOC_MAGIC, 0x04)

/*
 * User queues: a program submits without a system call. Since version 2.
 *
 * CREATE_QUEUE makes one out of two rings in the caller's memory: @sq holds struct svadev_desc, @cq
 * struct svadev_completion, at slot index & (entries - 1) of a free-running 32-bit index. All
 * addresses, of the rings and in descriptors, are the caller's own pointers; svadev_desc.pasid is
 * zero and cookies are the program's. Two pages are mapped with mmap(MAP_SHARED) of the file:
 *  - the doorbell page, plain memory that the device shares: SVADEV_DOORBELL_*;
 *  - the wake page: a store of any 4 bytes traps, and wakes the engine of this queue if it sleeps.
 *
 * To submit: write descriptors at SQ_TAIL; store the new SQ_TAIL (release); full fence; load ARMED;
 * if that is not 0, store to the wake page. At most a ring's entries may lie between SQ_HEAD and
 * SQ_TAIL. To collect: the entry at CQ_HEAD is whole once its @seq (acquire) is CQ_HEAD + 1; store
 * the new CQ_HEAD (release). If the completion ring may have been full (more descriptors without a
 * collected completion than it has entries), do as after storing SQ_TAIL. A full completion ring
 * stops the queue until there is room; nothing is lost. The completion ring must be zeroed before
 * the queue is made.
 *
 * A queue that finds its rings or indexes unusable halts, raises its interrupt, and does no more;
 * QUERY_QUEUE says why. Destroy it and create another. Other queues do not notice.
 *
 * A reset of the function, and a restart by the driver when work does not end, take all user queues
 * away: their state is SVADEV_QUEUE_LOST, work in them ends without completions, and an access to
 * their pages raises SIGBUS. What is in memory of their rings is the program's and stays. Destroy
 * them and create others. The same accesses raise SIGBUS after DESTROY_QUEUE and UNBIND, which ends
 * all queues of the context. The pages are not inherited by fork().
 *
 * Closing the file ends the queues, too; a mapped page keeps the file open.
 */

/* Words of a doorbell page, 32 bits each. */
#define SVADEV_DOORBELL_SQ_TAIL 0x00	/* Written by software. */
#define SVADEV_DOORBELL_CQ_HEAD 0x04	/* Written by software. */
#define SVADEV_DOORBELL_SQ_HEAD 0x80	/* Written by the device. */
#define SVADEV_DOORBELL_CQ_TAIL 0x84	/* Written by the device. */
#define SVADEV_DOORBELL_ARMED 0x100	/* Written by the device: not 0 while it does not look. */

/* svadev_create_queue.priority: shares of its engine, while other queues have work, too. */
#define SVADEV_PRIORITY_NORMAL 0	/* Two shares. */
#define SVADEV_PRIORITY_LOW 1	/* One. */
#define SVADEV_PRIORITY_HIGH 2	/* Four; CAP_SYS_NICE. */
#define SVADEV_PRIORITY_URGENT 3	/* Eight; CAP_SYS_NICE. */

/* Interrupts of a queue are no more frequent than so without CAP_SYS_NICE. */
#define SVADEV_MIN_INTERRUPT_INTERVAL_US 20
#define SVADEV_MIN_INTERRUPT_COUNT 16

/**
 * struct svadev_create_queue - SVADEV_IOC_CREATE_QUEUE
 * @argsz: size of this structure
 * @flags: zero
 * @sq: address of the submission ring, a multiple of 64
 * @cq: address of the completion ring, a multiple of 64
 * @sq_log2: log2 of its entries, 1 to what the device allows (15 at most)
 * @cq_log2: log2 of its entries, likewise
 * @eventfd: an eventfd(2) that is signalled when a descriptor with SVADEV_DESC_INTERRUPT completes
 *   and when the queue halts or is lost; -1 for none. Queues share interrupt vectors, so it may be
 *   signalled for nothing: the ring tells.
 * @queue: in: zero; out: the queue's name; not used again for a long time
 * @doorbell_offset: in: zero; out: offset for mmap() of the doorbell page, one page
 * @wake_offset: in: zero; out: offset for mmap() of the wake page, one page
 * @priority: SVADEV_PRIORITY_*; since version 3, as all below
 * @interrupt_interval_us: least time between two interrupts of the queue, at most 65535. What
 *   completes meanwhile waits for the next, which always comes; 0: no wait. Without CAP_SYS_NICE at
 *   least SVADEV_MIN_INTERRUPT_INTERVAL_US
 * @interrupt_count: as many completions that want an interrupt do not wait any longer, at most
 *   65535; 0: any number waits. Below SVADEV_MIN_INTERRUPT_COUNT it counts as that where the least
 *   interval was raised
 * @reserved: zero
 *
 * The context must be bound and the caller in the address space that bound it. The rings are not
 * pinned and need not be present: the device asks for their pages as for any other. A resized or
 * unmapped ring is not noticed until the device uses it.
 *
 * Errors: EINVAL not bound, or a field is out of range; EPERM the caller's address space is not the
 * one that bound, or @priority needs CAP_SYS_NICE; ESRCH the address space that bound is dead;
 * EBUSY the context has SVADEV_MAX_USER_QUEUES; ENOSPC no queue of the function is free; EDQUOT the
 * user has as many queues of the function as are free, and has not CAP_SYS_RESOURCE; EBADF, EINVAL
 * @eventfd is none; EAGAIN reset under way and O_NONBLOCK.
 */
struct svadev_create_queue {
	__u32 argsz;
	__u32 flags;
	__u64 sq;
	__u64 cq;
	__u32 sq_log2;
	__u32 cq_log2;
	__s32 eventfd;
	__u32 queue;
	__u64 doorbell_offset;
	__u64 wake_offset;
	__u32 priority;
	__u32 interrupt_interval_us;
	__u32 interrupt_count;
	__u32 reserved;
};

/**
 * struct svadev_destroy_queue - SVADEV_IOC_DESTROY_QUEUE
 * @argsz: size of this structure
 * @flags: zero
 * @queue: name of a queue of this context
 * @reserved: zero
 *
 * When this returns the device does nothing for the queue any more. Its work has completed, as
 * SVADEV_STATUS_ABORTED if it was not done, as far as the completion ring has room and is present.
 *
 * Errors: ENOENT no such queue of this context; EPERM as for UNBIND.
 */
struct svadev_destroy_queue {
	__u32 argsz;
	__u32 flags;
	__u32 queue;
	__u32 reserved;
};

/* svadev_query_queue.state. */
#define SVADEV_QUEUE_RUNNING 0
#define SVADEV_QUEUE_HALTED 1	/* Stopped by itself, or by an abort of its PASID (error 0). */
#define SVADEV_QUEUE_LOST 2	/* The function was reset, restarted or removed. */

/* svadev_query_queue.error. */
#define SVADEV_QUEUE_ERROR_NONE 0
#define SVADEV_QUEUE_ERROR_BAD_CONFIG 1	/* Never seen: CREATE_QUEUE fails instead. */
#define SVADEV_QUEUE_ERROR_BAD_TAIL 2	/* SQ_TAIL was more than a ring ahead of SQ_HEAD. */
#define SVADEV_QUEUE_ERROR_BAD_CQ_HEAD 3	/* CQ_HEAD was outside what was written. */
#define SVADEV_QUEUE_ERROR_SQ_FAULT 4	/* The submission ring could not be read. */
#define SVADEV_QUEUE_ERROR_CQ_FAULT 5	/* The completion ring could not be written. */

/**
 * struct svadev_query_queue - SVADEV_IOC_QUERY_QUEUE
 * @argsz: size of this structure
 * @flags: zero
 * @queue: name of a queue of this context
 * @state: out: SVADEV_QUEUE_*
 * @error: out: SVADEV_QUEUE_ERROR_*
 * @reserved: zero
 * @fault_address: out: address at fault, for the two errors that have one
 *
 * A trip to the device: not for the hot path. Any holder of the file may ask. Errors: ENOENT no
 * such queue of this context.
 */
struct svadev_query_queue {
	__u32 argsz;
	__u32 flags;
	__u32 queue;
	__u32 state;
	__u32 error;
	__u32 reserved;
	__u64 fault_address;
};

#define SVADEV_IOC_CREATE_QUEUE _IO(SVADEV_IOC_MAGIC, 0x10)
#define SVADEV_IOC_DESTROY_QUEUE _IO(SVADEV_IOC_MAGIC, 0x11)
#define SVADEV_IOC_QUERY_QUEUE _IO(SVADEV_IOC_MAGIC, 0x12)

/**
 * struct svadev_plant_swap - SVADEV_IOC_PLANT_SWAP: a mistake on purpose, for tests
 * @argsz: size of this structure
 * @flags: zero
 * @address: the first of two neighbouring pages of the caller
 *
 * Exchanges the two pages in the caller's page table and tells no mmu notifier: the IOMMU and the
 * device go on with what they know. A second call puts them back. ENOTTY unless the module was
 * loaded with plant=1, which no one should who is not testing.
 *
 * Errors: EPERM without CAP_SYS_RAWIO; EINVAL not a private anonymous mapping with
 * MADV_NOHUGEPAGE, or there is a 2 MiB boundary between the pages; EFAULT one of the pages is not
 * present; EOPNOTSUPP not on this CPU.
 */
struct svadev_plant_swap {
	__u32 argsz;
	__u32 flags;
	__u64 address;
};

#define SVADEV_IOC_PLANT_SWAP _IO(SVADEV_IOC_MAGIC, 0x1f)

/* The range for operations on user queues. ENOTTY where there is none. */
#define SVADEV_IOC_QUEUE_FIRST 0x10
#define SVADEV_IOC_QUEUE_LAST 0x17

#endif /* _UAPI_SVADEV_H */
