/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Mirror mode's hardware interface, as emulator/spec/src/mirror.rs has it; docs/mirror.md is the
 * protocol in prose. A test of guest-tests/lib compares every constant and every structure here
 * with the original. All integers are little-endian.
 */
#ifndef _SVADEV_MIRROR_HW_H
#define _SVADEV_MIRROR_HW_H

#include <linux/types.h>

/* An ASID has bit 19 set and stands where a PASID stands. */
#define SVADEV_MIRROR_ASID_BIT (1U << 19)
/* What different sides write is so far apart, bytes. */
#define SVADEV_MIRROR_LINE 128

/* Offsets in BAR_REGISTERS: width and access of each. */
#define SVADEV_REG_MIRROR_BASE 0x100		/* 64 RW */
#define SVADEV_REG_MIRROR_CONTROL 0x108		/* 32 RW */
#define SVADEV_REG_MIRROR_STATUS 0x10c		/* 32 RO */
#define SVADEV_REG_MIRROR_VECTOR 0x110		/* 32 RW */
#define SVADEV_REG_MIRROR_ERROR_ASID 0x114	/* 32 RO */
#define SVADEV_REG_MIRROR_ERROR_ADDRESS 0x118	/* 64 RO */
#define SVADEV_REG_MIRROR_KICK 0x120		/* 32 WO */
#define SVADEV_REG_DEVMEM_ID 0x124		/* 32 RO */
#define SVADEV_REG_DEVMEM_SIZE 0x128		/* 64 RO */
/* MIRROR_CONTROL */
#define SVADEV_MIRROR_CONTROL_ENABLE (1U << 0)
/* MIRROR_STATUS */
#define SVADEV_MIRROR_STATUS_ENABLED (1U << 0)
#define SVADEV_MIRROR_STATUS_BUSY (1U << 1)
#define SVADEV_MIRROR_STATUS_ERROR 0x0000ff00U
#define SVADEV_MIRROR_ERROR_NONE 0
#define SVADEV_MIRROR_ERROR_BAD_HEADER 1
#define SVADEV_MIRROR_ERROR_BLOCK_LOST 2
#define SVADEV_MIRROR_ERROR_BAD_SPACE 3
#define SVADEV_MIRROR_ERROR_BAD_ENTRY 4
#define SVADEV_MIRROR_ERROR_BAD_TABLE 5
#define SVADEV_MIRROR_ERROR_BAD_FRAME 6
#define SVADEV_MIRROR_ERROR_BAD_EVENT_HEAD 7
#define SVADEV_MIRROR_ERROR_BAD_RESPONSE_TAIL 8
#define SVADEV_MIRROR_ERROR_BAD_INVALIDATION 9
/* MIRROR_VECTOR */
#define SVADEV_MIRROR_VECTOR_VECTOR 0x000000ffU
#define SVADEV_MIRROR_VECTOR_ENABLE (1U << 31)

/* The control block. */
#define SVADEV_MIRROR_MAGIC 0x5252494d		/* "MIRR" */
#define SVADEV_MIRROR_VERSION 1
#define SVADEV_MIRROR_SPACES_LOG2_MIN 4
#define SVADEV_MIRROR_SPACES_LOG2_MAX 16
#define SVADEV_MIRROR_INVALIDATIONS_LOG2_MIN 2
#define SVADEV_MIRROR_INVALIDATIONS_LOG2_MAX 14
#define SVADEV_MIRROR_EVENTS_LOG2_MIN 1
#define SVADEV_MIRROR_EVENTS_LOG2_MAX 12
#define SVADEV_MIRROR_RESPONSES_LOG2_MIN 3
#define SVADEV_MIRROR_RESPONSES_LOG2_MAX 14

struct svadev_mirror_header {
	__u32 magic;
	__u32 version;
	__u8 spaces_log2;
	__u8 invalidations_log2;
	__u8 events_log2;
	__u8 responses_log2;
	__u32 engines;
	__u64 reserved0;
	__u64 reserved1;
	__u64 reserved2;
	__u64 reserved3;
	__u64 reserved4;
	__u64 reserved5;
};

/*
 * Offsets in the control block. The invalidation ring follows the table of spaces (8 << spaces_log2
 * bytes), the engine blocks follow the ring (32 << invalidations_log2 bytes).
 */
#define SVADEV_MIRROR_INVALIDATION_TAIL 0x080	/* u64, driver */
#define SVADEV_MIRROR_WAITERS 0x100		/* u64, driver */
#define SVADEV_MIRROR_SPACES 0x1000
/*
 * Offsets in an engine block. The response ring follows the event ring (64 << events_log2 bytes),
 * the next engine block follows the response ring (16 << responses_log2 bytes).
 */
#define SVADEV_MIRROR_ENGINE_ONLINE 0x00	/* u64, engine */
#define SVADEV_MIRROR_ENGINE_INVALIDATION_HEAD 0x08	/* u64, engine */
#define SVADEV_MIRROR_ENGINE_EVENT_TAIL 0x10	/* u64, engine */
#define SVADEV_MIRROR_ENGINE_RESPONSE_HEAD 0x18	/* u64, engine */
#define SVADEV_MIRROR_ENGINE_EVENT_HEAD 0x80	/* u64, driver */
#define SVADEV_MIRROR_ENGINE_RESPONSE_TAIL 0x88	/* u64, driver */
#define SVADEV_MIRROR_ENGINE_EVENTS 0x100

/* An entry of the table of spaces: root address in bits 51:12, the driver's generation in 63:52. */
#define SVADEV_MIRROR_SPACE_VALID (1U << 0)
#define SVADEV_MIRROR_SPACE_FIVE_LEVELS (1U << 1)
#define SVADEV_MIRROR_SPACE_GENERATION_SHIFT 52

struct svadev_mirror_invalidation {
	__u32 asid;
	__u32 flags;
	__u64 first;
	__u64 last;
	__u64 reserved;
};

#define SVADEV_MIRROR_INVALIDATE_ALL (1U << 0)
#define SVADEV_MIRROR_INVALIDATE_TABLES (1U << 1)

struct svadev_mirror_event {
	__u64 token;
	__u64 address;
	__u64 length;
	__u64 cookie;
	__u32 asid;
	__u16 queue;
	__u8 access;
	__u8 flags;
	__u32 generation;
	__u32 reserved0;
	__u64 reserved1;
	__u64 seq;
};

#define SVADEV_MIRROR_EVENT_RING (1U << 0)
#define SVADEV_MIRROR_EVENT_AGAIN (1U << 1)
#define SVADEV_MIRROR_ACCESS_READ 1
#define SVADEV_MIRROR_ACCESS_WRITE 2
#define SVADEV_MIRROR_ACCESS_EXCLUSIVE 4

struct svadev_mirror_response {
	__u64 token;
	__u32 code;
	__u32 reserved;
};

#define SVADEV_MIRROR_RESPONSE_SUCCESS 0
#define SVADEV_MIRROR_RESPONSE_INVALID 1
#define SVADEV_MIRROR_RESPONSE_FAILURE 2
#define SVADEV_MIRROR_RESPONSE_AGAIN 3

/* A page-table entry: frame in bits 51:12. */
#define SVADEV_MIRROR_PTE_PRESENT (1U << 0)
#define SVADEV_MIRROR_PTE_WRITABLE (1U << 1)
#define SVADEV_MIRROR_PTE_LARGE (1U << 7)
/* As shifts: C's plain integers have 32 bits. */
#define SVADEV_MIRROR_PTE_DEVICE_SHIFT 52
#define SVADEV_MIRROR_PTE_EXCLUSIVE_SHIFT 53
#define SVADEV_MIRROR_DEVICE_NUMBER_SHIFT 44

#endif
