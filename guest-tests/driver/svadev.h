/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * svadev: what the driver's files share.
 *
 *  svadev_main.c     module, class, memory of a device
 *  svadev_pci.c      probe, remove, reset
 *  svadev_hw.c       registers: start, stop, commands
 *  svadev_queue.c    the rings: submission, completion, watchdog
 *  svadev_context.c  bind, drain, unbind
 *  svadev_mm.c       when an address space dies
 *  svadev_user_queue.c  queues that programs drive themselves
 *  svadev_plant.c    a mistake on purpose, for tests; x86 only
 *  compat.h          what older kernels lack
 *  svadev_chardev.c  /dev/svadevN
 *
 * Locks, outermost first. Each is taken only after those above it, and none is held across a return
 * to user space:
 *
 *  device_lock()             the PCI core's, around probe, remove and reset
 *  svadev_device.contexts_lock  list of contexts; remove takes each context's mutex inside
 *  svadev_context.mutex      bind, unbind and release of one context, one at a time. Bind takes
 *                            mmap_lock and the SVA core's locks (iommu_sva_lock, the group's mutex)
 *                            inside it
 *  svadev_device.bonds_lock  who shares a PASID; never held across anything that waits
 *  svadev_device.gate        read: may touch the hardware if @state allows; write: changes @state.
 *                            Nobody takes it with mmap_lock held, and nobody takes mmap_lock inside
 *                            it: a reset that waits between two readers would close the circle
 *  svadev_device.map_lock    which user queues there are and may be mapped. Page faults and mmap()
 *                            take it inside mmap_lock. It is held over unmap_mapping_range(), which
 *                            runs the mmu notifiers of other drivers
 *  svadev_device.signal_lock user queues with an eventfd
 *  svadev_device.lock        spinlock, interrupts off: rings, slots and the lists of all contexts
 *  svadev_mm.lock            spinlock: contexts to wake when the address space dies. Our mmu
 *                            notifier takes this and nothing else
 */
#ifndef _SVADEV_H
#define _SVADEV_H

#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/types.h>
#include <linux/uidgid.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "compat.h"
#include "svadev_hw.h"

#if !defined(CONFIG_64BIT) || !defined(__LITTLE_ENDIAN)
/* Registers of 64 bits are written at once, and rings are copied as they are. */
#error "svadev: 64-bit little-endian kernels only"
#endif

/* Rings of the kernel queue, log2 of entries, if the device allows as many. */
#define SVADEV_RING_LOG2 12

/* A slot's number in the cookie that the device sees; the bits above make each cookie unique. */
#define SVADEV_TAG_SLOT_BITS 16

/* Completions that are handed out with interrupts off in one go. */
#define SVADEV_REAP_BATCH 64

/* How long the death of an address space may take before an unbind gives up. */
#define SVADEV_MM_DEATH_TIMEOUT (10 * HZ)

/* Most interrupt vectors to use. */
#define SVADEV_MAX_VECTORS 8

/**
 * enum svadev_state - what may be done with a device
 * @SVADEV_RUNNING: anything. Work is in flight in this state only
 * @SVADEV_RESETTING: nothing until the PCI core calls reset_done; callers wait
 * @SVADEV_FAILED: nothing until a reset succeeds (-EIO)
 * @SVADEV_GONE: nothing any more (-ENODEV)
 */
enum svadev_state {
	SVADEV_RUNNING,
	SVADEV_RESETTING,
	SVADEV_FAILED,
	SVADEV_GONE,
};

/**
 * struct svadev_stats - counters since probe, in sysfs; svadev_device.lock protects them
 * @submitted: descriptors put into the ring
 * @completed: completions that the device wrote
 * @aborted: descriptors that the driver completed itself, since the device was stopped
 * @bad_completions: completions that match no descriptor in flight
 * @interrupts: interrupts
 * @restarts: times that the driver stopped and started the function because work did not end
 * @resets: resets by the PCI core
 * @stuck: descriptors reported as in flight for too long
 * @user_queues: user queues that exist now
 * @orphans: contexts whose file is closed, but which cannot be unbound yet
 * @user_interrupts: interrupts of the vectors that user queues share
 */
struct svadev_stats {
	u64 submitted;
	u64 completed;
	u64 aborted;
	u64 bad_completions;
	u64 interrupts;
	u64 restarts;
	u64 resets;
	u64 stuck;
	u64 user_queues;
	u64 orphans;
	u64 user_interrupts;
};

/**
 * struct svadev_bond - a PASID in use on one function, shared by the contexts of one address space
 * @node: in svadev_device.bonds
 * @pasid: the PASID
 * @active: contexts that may submit. When it falls to 0 the PASID is aborted on the device
 * @holders: contexts that hold a handle of the SVA core, including those that still drain
 * @stopping: an abort is under way, without any lock: whoever binds or stops waits for its end
 * @quiet: nobody has been active since an abort succeeded: the last handle may be given back
 * @smm: whose it is; the holders have references
 * @held: a reset keeps the address space from dying
 *
 * svadev_device.bonds_lock protects all of it. A PASID belongs to one mm for as long as any handle
 * for it exists (the SVA core keeps the mm_struct until the last unbind), so the number alone
 * identifies a bond.
 */
struct svadev_bond {
	struct list_head node;
	u32 pasid;
	unsigned int active;
	unsigned int holders;
	bool stopping;
	bool quiet;
	struct svadev_mm *smm;
	bool held;
};

/**
 * struct svadev_mm - an address space that is bound
 * @notifier: ours in the address space; one for all functions, counted by mmu_notifier_get()
 * @lock: protects @contexts
 * @contexts: those bound to it, to be woken when it dies
 * @dead: the IOMMU driver's notifier has been called, or is about to be
 * @wait: woken when @dead is set
 */
struct svadev_mm {
	struct mmu_notifier notifier;
	spinlock_t lock; /* contexts */
	struct list_head contexts;
	bool dead;
	wait_queue_head_t wait;
};

/**
 * struct svadev_user - what one user has of a function
 * @node: in svadev_device.users
 * @uid: who opened the contexts
 * @contexts: how many; svadev_device.contexts_lock protects this
 * @queues: user queues; svadev_device.map_lock protects this
 * @in_flight: descriptors in the kernel queue; svadev_device.lock protects this
 */
struct svadev_user {
	struct list_head node;
	kuid_t uid;
	unsigned int contexts;
	unsigned int queues;
	unsigned int in_flight;
};

/**
 * struct svadev_device - one accelerator function
 * @dev: in class svadev; its reference count is this structure's
 * @cdev: /dev/svadevN
 * @minor: N
 * @pdev: the function; referenced, but usable only while @state is not SVADEV_GONE or within remove
 * @regs: BAR_REGISTERS, mapped until remove returns
 * @doorbells: BAR_DOORBELLS, likewise; the kernel queue's page comes first
 * @irqs: Linux interrupt numbers of the vectors in use. Vector 0 is the kernel queue's, the others
 *	are shared by user queues, as is vector 0 if there is no other
 * @vectors: how many
 * @queues: queues that registers and doorbells have room for
 * @version: VERSION
 * @limits: LIMITS
 * @opcodes: OPCODES
 * @max_length: MAX_LENGTH
 * @max_scatter: MAX_SCATTER
 * @max_ring_log2: MAX_RING_LOG2
 * @features: FEATURES
 * @command_limit_ms: COMMAND_LIMIT
 * @gate: see the top of this file
 * @state: written with @gate held for writing and @lock held; either is enough to read it
 * @starts: how often the function was started; changed with @gate held for writing
 * @quiet: the function is stopped, and its page requests are answered; as @starts
 * @lost: remove has given up: nobody answers, or not even the bus master bit is left; as @starts
 * @state_wait: woken when @state changes
 * @abort_slots: abort slots in use, one bit each; atomic
 * @abort_wait: woken when one becomes free
 * @contexts_lock: protects @contexts, @orphans and @users
 * @contexts: open files
 * @orphans: contexts whose file is closed, but which cannot be unbound yet
 * @users: who has opened them
 * @orphan_work: tries to unbind @orphans
 * @bonds_lock: protects @bonds
 * @bonds: PASIDs in use
 * @bonds_wait: woken when an abort of one ends
 * @reset_work: asks the PCI core for a reset after a restart failed
 * @watchdog: looks for work that does not end, while there is any
 * @map_lock: protects @user_queues, and in them what is marked
 * @user_queues: user queues by number; never the kernel queue's 0
 * @queue_generation: makes their names unique
 * @signal_lock: protects @signalled
 * @signalled: user queues with an eventfd
 * @lock: protects everything below, and in contexts what is marked
 * @sq: submission ring
 * @cq: completion ring
 * @sq_dma: its DMA address
 * @cq_dma: its DMA address
 * @ring_log2: log2 of the entries of either ring
 * @sq_tail: free-running index one past the last descriptor written
 * @cq_head: free-running index of the next completion to read
 * @ring_live: the device may use the rings
 * @slots: what is in flight, by slot number
 * @free_slots: stack of unused slot numbers
 * @free_count: its height
 * @generation: makes cookies unique
 * @room_wait: woken when a slot becomes free
 * @stats: counters
 */
struct svadev_device {
	struct device dev;
	struct cdev cdev;
	int minor;
	struct pci_dev *pdev;
	void __iomem *regs;
	void __iomem *doorbells;
	int irqs[SVADEV_MAX_VECTORS];
	unsigned int vectors;
	unsigned int queues;

	u32 version;
	u32 limits;
	u64 opcodes;
	u64 max_length;
	u32 max_scatter;
	u32 max_ring_log2;
	u64 features;
	u32 command_limit_ms;

	struct rw_semaphore gate;
	enum svadev_state state;
	unsigned int starts;
	bool quiet;
	bool lost;
	wait_queue_head_t state_wait;
	unsigned long abort_slots;
	wait_queue_head_t abort_wait;
	struct mutex contexts_lock; /* contexts, orphans, users */
	struct list_head contexts;
	struct list_head orphans;
	struct list_head users;
	struct delayed_work orphan_work;
	struct mutex bonds_lock; /* bonds */
	struct list_head bonds;
	wait_queue_head_t bonds_wait;
	struct work_struct reset_work;
	struct delayed_work watchdog;

	struct mutex map_lock; /* user_queues */
	struct svadev_user_queue *user_queues[SVADEV_MAX_QUEUES];
	u32 queue_generation;

	struct mutex signal_lock; /* signalled */
	struct list_head signalled;

	spinlock_t lock; /* all below */
	struct svadev_desc *sq;
	struct svadev_completion *cq;
	dma_addr_t sq_dma;
	dma_addr_t cq_dma;
	unsigned int ring_log2;
	u32 sq_tail;
	u32 cq_head;
	bool ring_live;
	struct svadev_request **slots;
	u16 *free_slots;
	unsigned int free_count;
	u64 generation;
	wait_queue_head_t room_wait;
	struct svadev_stats stats;
};

/**
 * struct svadev_request - one descriptor from SUBMIT until WAIT has given its completion out
 * @node: in svadev_context.in_flight or .done, or private to the one who allocated or collects it
 * @context: whose it is. In flight, the context lives: release drains before it frees
 * @tag: the cookie that the device sees
 * @cookie: the program's cookie
 * @submitted: jiffies
 * @reported: the watchdog has complained
 * @completion: once in .done
 *
 * svadev_device.lock protects it while it is on a list of the context or in a slot.
 */
struct svadev_request {
	struct list_head node;
	struct svadev_context *context;
	u64 tag;
	u64 cookie;
	unsigned long submitted;
	bool reported;
	struct svadev_completion completion;
};

/**
 * struct svadev_context - one open file
 * @sdev: the device; referenced
 * @node: in svadev_device.contexts or .orphans
 * @user: who opened the file
 * @mutex: serialises bind, unbind, release; protects @handle, @bond, @smm and @stopped
 * @handle: the SVA core's, while bound
 * @bond: while bound
 * @smm: the address space that bound it, while bound
 * @mm_node: in svadev_mm.contexts
 * @stopped: no longer counted in svadev_bond.active
 * @mm: the address space that bound it. mmgrab()bed so that the pointer identifies it for as long
 *	as we compare it; its memory is never used through this (rule L9). Changed with @mutex and
 *	svadev_device.lock held
 * @pasid: its PASID, 0 if not bound; changed as @mm
 * @accepting: bound and not about to be unbound; changed as @mm
 * @stopping: about to be unbound or freed: takes no RAW work either; changed as @mm
 * @in_flight: requests that the device has; svadev_device.lock protects this and all below
 * @done: requests with a completion, oldest first
 * @in_flight_count: length of @in_flight
 * @uncollected: length of @done
 * @wait: woken when something completes or @accepting changes
 * @mapping: the file's, to find mappings of user queues. It lives as long as the file
 * @user_queues: user queues of this context, only while bound; @mutex protects it and the count
 * @user_queue_count: how many
 */
struct svadev_context {
	struct svadev_device *sdev;
	struct list_head node;
	struct svadev_user *user;
	struct mutex mutex; /* handle, bond, smm, stopped */
	struct iommu_sva *handle;
	struct svadev_bond *bond;
	struct svadev_mm *smm;
	struct list_head mm_node;
	bool stopped;
	struct mm_struct *mm;
	u32 pasid;
	bool accepting;
	bool stopping;
	struct list_head in_flight;
	struct list_head done;
	unsigned int in_flight_count;
	unsigned int uncollected;
	wait_queue_head_t wait;
	struct address_space *mapping;
	struct list_head user_queues;
	unsigned int user_queue_count;
};

/**
 * struct svadev_user_queue - a queue whose rings are a program's
 * @ref: held by the context while the queue exists, and by each mapping of its pages
 * @context: whose it is; lives while the queue exists, and while a page is mapped (the mapping holds
 *	the file)
 * @number: in the function
 * @id: the program's name for it: the number, and a generation above, so that a stale one never hits
 *	the number's next owner
 * @mm: the address space that its rings are in, for comparison only: while the queue exists the
 *	context is bound, and so has it mmgrab()bed
 * @doorbell_pfn: page frame of the doorbell page
 * @wake_pfn: page frame of the wake page
 * @live: the device has it, and its pages may be mapped; svadev_device.map_lock protects it. Set
 *	once, with @gate held for reading; cleared with @gate held for writing (lost) or
 *	svadev_context.mutex held (destroyed)
 * @eventfd: to signal, or NULL
 * @irq: Linux interrupt number of its vector
 * @node: in svadev_context.user_queues
 * @signal_node: in svadev_device.signalled, if it has an eventfd; signal_lock protects it
 */
struct svadev_user_queue {
	struct kref ref;
	struct svadev_context *context;
	unsigned int number;
	u32 id;
	struct mm_struct *mm;
	unsigned long doorbell_pfn;
	unsigned long wake_pfn;
	bool live;
	struct eventfd_ctx *eventfd;
	int irq;
	struct list_head node;
	struct list_head signal_node;
};

/* svadev_main.c */
extern unsigned int svadev_command_timeout_ms;
extern unsigned int svadev_drain_timeout_ms;
extern unsigned int svadev_stuck_ms;
extern bool svadev_plant;
extern bool svadev_raw;
extern struct kmem_cache *svadev_request_cache;
struct svadev_device *svadev_device_alloc(struct pci_dev *pdev);
int svadev_device_publish(struct svadev_device *sdev);
void svadev_device_unpublish(struct svadev_device *sdev);
void svadev_state_changed(struct svadev_device *sdev);

/* svadev_hw.c */
int svadev_hw_identify(struct svadev_device *sdev);
int svadev_hw_start(struct svadev_device *sdev);
int svadev_hw_stop(struct svadev_device *sdev);
unsigned int svadev_hw_limit_ms(const struct svadev_device *sdev);
int svadev_hw_abort_start(struct svadev_device *sdev, unsigned int slot, u32 pasid);
int svadev_hw_abort_result(struct svadev_device *sdev, unsigned int slot, u32 pasid);
int svadev_hw_user_queue_start(struct svadev_device *sdev, unsigned int number,
			       const struct svadev_create_queue *args, u32 pasid, u32 vector);
int svadev_hw_user_queue_stop(struct svadev_device *sdev, unsigned int number);
u32 svadev_hw_queue_status(struct svadev_device *sdev, unsigned int number);
u64 svadev_hw_queue_fault_address(struct svadev_device *sdev, unsigned int number);

/* svadev_queue.c */
int svadev_queue_alloc(struct svadev_device *sdev);
void svadev_queue_free(struct svadev_device *sdev);
void svadev_queue_reset(struct svadev_device *sdev);
irqreturn_t svadev_queue_irq(int irq, void *data);
irqreturn_t svadev_queue_irq_thread(int irq, void *data);
void svadev_queue_poll(struct svadev_device *sdev);
int svadev_queue_room(struct svadev_context *context);
void svadev_queue_push(struct svadev_context *context, struct svadev_request *request,
		       struct svadev_desc *desc);
void svadev_queue_publish(struct svadev_device *sdev);
void svadev_queue_wake(struct svadev_device *sdev);
void svadev_queue_halt(struct svadev_device *sdev, enum svadev_state state);
void svadev_queue_restart(struct svadev_device *sdev, unsigned int starts, const char *why);
void svadev_queue_watchdog(struct work_struct *work);

/* svadev_context.c */
struct svadev_context *svadev_context_create(struct svadev_device *sdev,
					     struct address_space *mapping);
void svadev_context_destroy(struct svadev_context *context);
int svadev_context_bind(struct svadev_context *context, bool nonblock, u32 *pasid);
int svadev_context_unbind(struct svadev_context *context);
void svadev_context_evict(struct svadev_context *context);
int svadev_context_may_submit(struct svadev_context *context);
bool svadev_context_mm_dead(struct svadev_context *context);
bool svadev_context_may_end(struct svadev_context *context);
void svadev_context_hold_all(struct svadev_device *sdev);
void svadev_context_let_go_all(struct svadev_device *sdev);
void svadev_context_free_orphans(struct svadev_device *sdev);
void svadev_context_orphan_work(struct work_struct *work);
int svadev_enter(struct svadev_device *sdev, bool nonblock);
void svadev_leave(struct svadev_device *sdev);

/* svadev_user_queue.c */
int svadev_user_queue_create(struct svadev_context *context, struct svadev_create_queue *args,
			     bool nonblock);
int svadev_user_queue_destroy(struct svadev_context *context, u32 id);
void svadev_user_queue_destroy_all(struct svadev_context *context);
int svadev_user_queue_query(struct svadev_context *context, struct svadev_query_queue *args);
int svadev_user_queue_mmap(struct svadev_context *context, struct vm_area_struct *vma);
void svadev_user_queue_lose_all(struct svadev_device *sdev);
void svadev_user_queue_signal(struct svadev_device *sdev, int irq);
irqreturn_t svadev_user_queue_irq(int irq, void *data);
irqreturn_t svadev_user_queue_irq_thread(int irq, void *data);

/* svadev_mm.c */
struct svadev_mm *svadev_mm_get(void);
void svadev_mm_put(struct svadev_mm *smm);
void svadev_mm_add(struct svadev_mm *smm, struct svadev_context *context);
void svadev_mm_del(struct svadev_mm *smm, struct svadev_context *context);
int svadev_mm_hold(struct svadev_mm *smm, bool *held);

/* svadev_plant.c */
#ifdef CONFIG_X86
int svadev_plant_swap(unsigned long address);
#else
static inline int svadev_plant_swap(unsigned long address)
{
	return -EOPNOTSUPP;
}
#endif

/* svadev_chardev.c */
extern const struct file_operations svadev_fops;

/* svadev_pci.c */
extern struct pci_driver svadev_pci_driver;

static inline void svadev_set_state(struct svadev_device *sdev, enum svadev_state state)
{
	lockdep_assert_held_write(&sdev->gate);
	lockdep_assert_held(&sdev->lock);
	WRITE_ONCE(sdev->state, state);
}

#endif /* _SVADEV_H */
