/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The accelerator's hardware interface, as emulator/spec/src/device.rs has it;
 * docs/device-reference.md says it in prose. A test of guest-tests/lib compares every constant here
 * with the original. Descriptors, completions, doorbell words and their values are part of the user
 * interface too, and stand in uapi/svadev.h.
 */
#ifndef _SVADEV_HW_H
#define _SVADEV_HW_H

#include "uapi/svadev.h"

#define SVADEV_PCI_VENDOR_ID 0x1b36
#define SVADEV_PCI_DEVICE_ID_ACCELERATOR 0x00fd
#define SVADEV_PCI_DEVICE_ID_IOMMU 0x00fe

#define SVADEV_BAR_REGISTERS 0
#define SVADEV_BAR_DOORBELLS 2
#define SVADEV_BAR_MSIX 4
#define SVADEV_DOORBELL_STRIDE 0x1000

#define SVADEV_ID_MAGIC 0x44415653	/* "SVAD" */
#define SVADEV_ABI_MAJOR 1
#define SVADEV_ABI_MINOR 2

#define SVADEV_MAX_LENGTH (1 << 30)
#define SVADEV_MAX_SCATTER_ENTRIES 1024
#define SVADEV_RING_LOG2_MIN 1
#define SVADEV_RING_LOG2_MAX 15
#define SVADEV_MAX_QUEUES 256

/* Offsets in BAR_REGISTERS: width and access of each. */
#define SVADEV_REG_BAR_SIZE 0x8000
#define SVADEV_REG_ID 0x000			/* 32 RO */
#define SVADEV_REG_VERSION 0x004		/* 32 RO */
#define SVADEV_REG_OPCODES 0x008		/* 64 RO */
#define SVADEV_REG_LIMITS 0x010			/* 32 RO */
#define SVADEV_REG_MAX_RING_LOG2 0x014		/* 32 RO */
#define SVADEV_REG_MAX_LENGTH 0x018		/* 64 RO */
#define SVADEV_REG_MAX_SCATTER 0x020		/* 32 RO */
#define SVADEV_REG_COMMAND_LIMIT 0x024		/* 32 RO, ms; from ABI 1.2 on */
#define SVADEV_REG_CONTROL 0x028		/* 32 RW */
#define SVADEV_REG_STATUS 0x02c			/* 32 RO */
#define SVADEV_REG_WAKE 0x030			/* 32 WO */
#define SVADEV_REG_COMMAND 0x038		/* 64 RW */
#define SVADEV_REG_COMMAND_STATUS 0x040		/* 32 RO */
#define SVADEV_REG_QUEUES 0x1000
#define SVADEV_REG_QUEUE_STRIDE 0x40
/* In a queue's registers. */
#define SVADEV_REG_QUEUE_SQ_BASE 0x00		/* 64 RW */
#define SVADEV_REG_QUEUE_CQ_BASE 0x08		/* 64 RW */
#define SVADEV_REG_QUEUE_SIZE 0x10		/* 32 RW */
#define SVADEV_REG_QUEUE_PASID 0x14		/* 32 RW */
#define SVADEV_REG_QUEUE_VECTOR 0x18		/* 32 RW */
#define SVADEV_REG_QUEUE_CONTROL 0x1c		/* 32 RW */
#define SVADEV_REG_QUEUE_STATUS 0x20		/* 32 RO */
#define SVADEV_REG_QUEUE_SERVICE 0x24		/* 32 RW */
#define SVADEV_REG_QUEUE_FAULT_ADDRESS 0x28	/* 64 RO */
#define SVADEV_REG_QUEUE_MODERATION 0x30	/* 32 RW */

/* LIMITS */
#define SVADEV_LIMITS_QUEUES 0x0000ffffU
#define SVADEV_LIMITS_VECTORS 0x00ff0000U
#define SVADEV_LIMITS_ENGINES 0xff000000U
/* CONTROL */
#define SVADEV_CONTROL_ENABLE (1U << 0)
/* STATUS */
#define SVADEV_STATUS_REG_ENABLED (1U << 0)
#define SVADEV_STATUS_REG_BUSY (1U << 1)
/* COMMAND: bits 7:0 opcode, 51:32 PASID */
#define SVADEV_COMMAND_PASID_SHIFT 32
#define SVADEV_COMMAND_ABORT_PASID 1
#define SVADEV_COMMAND_DRAIN_PASID 2
/* COMMAND_STATUS */
#define SVADEV_COMMAND_STATUS_BUSY (1U << 0)
#define SVADEV_COMMAND_STATUS_BAD (1U << 1)
#define SVADEV_COMMAND_STATUS_TIMEOUT (1U << 2)
/* QUEUE_SIZE */
#define SVADEV_QUEUE_SIZE_SQ_LOG2 0x000000ffU
#define SVADEV_QUEUE_SIZE_CQ_LOG2 0x0000ff00U
/* QUEUE_PASID */
#define SVADEV_QUEUE_PASID_PASID 0x000fffffU
#define SVADEV_QUEUE_PASID_USER (1U << 31)
/* QUEUE_VECTOR */
#define SVADEV_QUEUE_VECTOR_VECTOR 0x000000ffU
#define SVADEV_QUEUE_VECTOR_ENABLE (1U << 31)
/* QUEUE_SERVICE: SVADEV_PRIORITY_* */
#define SVADEV_QUEUE_SERVICE_PRIORITY 0x000000ffU
/* QUEUE_MODERATION */
#define SVADEV_QUEUE_MODERATION_INTERVAL_US 0x0000ffffU
#define SVADEV_QUEUE_MODERATION_COUNT 0xffff0000U
/* QUEUE_CONTROL */
#define SVADEV_QUEUE_CONTROL_ENABLE (1U << 0)
/* QUEUE_STATUS */
#define SVADEV_QUEUE_STATUS_ENABLED (1U << 0)
#define SVADEV_QUEUE_STATUS_HALTED (1U << 1)
#define SVADEV_QUEUE_STATUS_ERROR 0x0000ff00U

#endif /* _SVADEV_HW_H */
