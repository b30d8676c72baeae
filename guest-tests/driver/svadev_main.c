// SPDX-License-Identifier: GPL-2.0-only
/*
 * svadev: driver of the shared-virtual-addressing accelerator.
 *
 * Programs hand the device their own pointers; the IOMMU translates them with the page tables of
 * the process, and the kernel's I/O page fault handling brings in what is missing. docs/driver.md
 * is the long form.
 */
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "svadev.h"

unsigned int svadev_command_timeout_ms = 5000;
module_param_named(command_timeout_ms, svadev_command_timeout_ms, uint, 0644);
MODULE_PARM_DESC(command_timeout_ms,
		 "wait for the device beyond the limit that it states itself (default 5000)");

unsigned int svadev_drain_timeout_ms = 20000;
module_param_named(drain_timeout_ms, svadev_drain_timeout_ms, uint, 0644);
MODULE_PARM_DESC(drain_timeout_ms,
		 "longest wait for a context's own work before the PASID is aborted (default 20000)");

unsigned int svadev_stuck_ms = 30000;
module_param_named(stuck_ms, svadev_stuck_ms, uint, 0644);
MODULE_PARM_DESC(stuck_ms, "report a descriptor that is in flight for longer (default 30000)");

bool svadev_plant;
module_param_named(plant, svadev_plant, bool, 0444);
MODULE_PARM_DESC(plant, "let programs plant mistakes, for tests only (default no)");

bool svadev_raw;
module_param_named(raw, svadev_raw, bool, 0444);
MODULE_PARM_DESC(raw, "let programs with CAP_SYS_RAWIO name any PASID or none, for tests only (default no)");

struct kmem_cache *svadev_request_cache;

static dev_t svadev_devt;
static DEFINE_IDA(svadev_minors);
#define SVADEV_MINORS 256

/* /sys/class/svadev/svadevN/stats/... */
#define SVADEV_STAT(_name) \
static ssize_t _name##_show(struct device *dev, struct device_attribute *attr, char *buf) \
{ \
	struct svadev_device *sdev = container_of(dev, struct svadev_device, dev); \
	u64 value; \
	\
	scoped_guard(spinlock_irq, &sdev->lock) \
		value = sdev->stats._name; \
	return sysfs_emit(buf, "%llu\n", value); \
} \
static DEVICE_ATTR_RO(_name)

SVADEV_STAT(submitted);
SVADEV_STAT(completed);
SVADEV_STAT(aborted);
SVADEV_STAT(bad_completions);
SVADEV_STAT(interrupts);
SVADEV_STAT(restarts);
SVADEV_STAT(resets);
SVADEV_STAT(stuck);
SVADEV_STAT(user_queues);
SVADEV_STAT(orphans);
SVADEV_STAT(user_interrupts);

static struct attribute *svadev_stats_attrs[] = {
	&dev_attr_submitted.attr,
	&dev_attr_completed.attr,
	&dev_attr_aborted.attr,
	&dev_attr_bad_completions.attr,
	&dev_attr_interrupts.attr,
	&dev_attr_restarts.attr,
	&dev_attr_resets.attr,
	&dev_attr_stuck.attr,
	&dev_attr_user_queues.attr,
	&dev_attr_orphans.attr,
	&dev_attr_user_interrupts.attr,
	NULL
};

static const struct attribute_group svadev_stats_group = {
	.name = "stats",
	.attrs = svadev_stats_attrs,
};

static const char *const state_names[] = {
	[SVADEV_RUNNING] = "running",
	[SVADEV_RESETTING] = "resetting",
	[SVADEV_FAILED] = "failed",
	[SVADEV_GONE] = "gone",
};

/* /sys/class/svadev/svadevN/state; poll(2) and uevents tell of changes */
static ssize_t state_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	struct svadev_device *sdev = container_of(dev, struct svadev_device, dev);

	return sysfs_emit(buf, "%s\n", state_names[READ_ONCE(sdev->state)]);
}
static DEVICE_ATTR_RO(state);

static struct attribute *svadev_attrs[] = {
	&dev_attr_state.attr,
	NULL
};

static const struct attribute_group svadev_group = {
	.attrs = svadev_attrs,
};

static const struct attribute_group *svadev_groups[] = {
	&svadev_group,
	&svadev_stats_group,
	NULL
};

static char *svadev_devnode(SVADEV_DEVNODE_CONST struct device *dev, umode_t *mode)
{
	/* Everyone may: a program reaches its own memory only. */
	if (mode)
		*mode = 0666;
	return NULL;
}

static SVADEV_CLASS_CONST struct class svadev_class = {
	.name = "svadev",
	.devnode = svadev_devnode,
	.dev_groups = svadev_groups,
};

/**
 * svadev_state_changed() - tell user space
 * @sdev: published device
 *
 * Context: process.
 */
void svadev_state_changed(struct svadev_device *sdev)
{
	sysfs_notify(&sdev->dev.kobj, NULL, "state");
	kobject_uevent(&sdev->dev.kobj, KOBJ_CHANGE);
}

/* The last reference is gone: no file is open, the driver is unbound. */
static void svadev_device_release(struct device *dev)
{
	struct svadev_device *sdev = container_of(dev, struct svadev_device, dev);

	WARN_ON(!list_empty(&sdev->contexts) || !list_empty(&sdev->orphans) ||
		!list_empty(&sdev->bonds) || !list_empty(&sdev->users));
	kvfree(sdev->slots);
	kvfree(sdev->free_slots);
	pci_dev_put(sdev->pdev);
	kfree(sdev);
}

static void svadev_reset_work(struct work_struct *work)
{
	struct svadev_device *sdev = container_of(work, struct svadev_device, reset_work);
	int err;

	/*
	 * Only tries: whoever holds the device lock resets or removes the function, and remove
	 * waits for this work.
	 */
	err = pci_try_reset_function(sdev->pdev);
	dev_warn(&sdev->pdev->dev, "reset since the function did not restart: %d\n", err);
}

/**
 * svadev_device_alloc() - a device structure for a function
 * @pdev: the function
 *
 * Context: probe.
 * Return: the structure with one reference, state SVADEV_RUNNING but unknown to anyone; -ENOMEM.
 */
struct svadev_device *svadev_device_alloc(struct pci_dev *pdev)
{
	struct svadev_device *sdev = kzalloc(sizeof(*sdev), GFP_KERNEL);

	if (!sdev)
		return ERR_PTR(-ENOMEM);
	sdev->pdev = pci_dev_get(pdev);
	sdev->minor = -1;
	init_rwsem(&sdev->gate);
	init_waitqueue_head(&sdev->state_wait);
	init_waitqueue_head(&sdev->room_wait);
	init_waitqueue_head(&sdev->abort_wait);
	init_waitqueue_head(&sdev->bonds_wait);
	mutex_init(&sdev->contexts_lock);
	mutex_init(&sdev->bonds_lock);
	mutex_init(&sdev->map_lock);
	mutex_init(&sdev->signal_lock);
	spin_lock_init(&sdev->lock);
	INIT_LIST_HEAD(&sdev->orphans);
	INIT_LIST_HEAD(&sdev->users);
	INIT_DELAYED_WORK(&sdev->orphan_work, svadev_context_orphan_work);
	INIT_LIST_HEAD(&sdev->signalled);
	INIT_LIST_HEAD(&sdev->contexts);
	INIT_LIST_HEAD(&sdev->bonds);
	INIT_WORK(&sdev->reset_work, svadev_reset_work);
	INIT_DELAYED_WORK(&sdev->watchdog, svadev_queue_watchdog);

	device_initialize(&sdev->dev);
	sdev->dev.class = &svadev_class;
	sdev->dev.parent = &pdev->dev;
	sdev->dev.release = svadev_device_release;
	return sdev;
}

/**
 * svadev_device_publish() - make /dev/svadevN
 * @sdev: started device
 *
 * Context: probe.
 * Return: 0 or an error, with nothing published.
 */
int svadev_device_publish(struct svadev_device *sdev)
{
	int err;

	sdev->minor = ida_alloc_max(&svadev_minors, SVADEV_MINORS - 1, GFP_KERNEL);
	if (sdev->minor < 0)
		return sdev->minor;
	sdev->dev.devt = MKDEV(MAJOR(svadev_devt), sdev->minor);
	err = dev_set_name(&sdev->dev, "svadev%d", sdev->minor);
	if (err)
		goto free_minor;
	cdev_init(&sdev->cdev, &svadev_fops);
	sdev->cdev.owner = THIS_MODULE;
	err = cdev_device_add(&sdev->cdev, &sdev->dev);
	if (err)
		goto free_minor;
	dev_info(&sdev->pdev->dev, "%s: ABI %u.%u, rings of %u\n", dev_name(&sdev->dev),
		 sdev->version >> 16, sdev->version & 0xffff, 1U << sdev->ring_log2);
	return 0;

free_minor:
	ida_free(&svadev_minors, sdev->minor);
	return err;
}

/**
 * svadev_device_unpublish() - take /dev/svadevN away
 * @sdev: published device
 *
 * Open files stay open. N is free for another device: nothing leads from the number to this
 * structure any more.
 *
 * Context: remove.
 */
void svadev_device_unpublish(struct svadev_device *sdev)
{
	cdev_device_del(&sdev->cdev, &sdev->dev);
	ida_free(&svadev_minors, sdev->minor);
}

static int __init svadev_init(void)
{
	int err;

	svadev_request_cache = KMEM_CACHE(svadev_request, SLAB_ACCOUNT);
	if (!svadev_request_cache)
		return -ENOMEM;
	err = alloc_chrdev_region(&svadev_devt, 0, SVADEV_MINORS, "svadev");
	if (err)
		goto destroy_cache;
	err = class_register(&svadev_class);
	if (err)
		goto unregister_region;
	err = pci_register_driver(&svadev_pci_driver);
	if (err)
		goto unregister_class;
	return 0;

unregister_class:
	class_unregister(&svadev_class);
unregister_region:
	unregister_chrdev_region(svadev_devt, SVADEV_MINORS);
destroy_cache:
	kmem_cache_destroy(svadev_request_cache);
	return err;
}

static void __exit svadev_exit(void)
{
	/* No file is open: each holds the module. */
	pci_unregister_driver(&svadev_pci_driver);
	class_unregister(&svadev_class);
	unregister_chrdev_region(svadev_devt, SVADEV_MINORS);
	ida_destroy(&svadev_minors);
	/* Our notifiers are freed by SRCU. */
	mmu_notifier_synchronize();
	kmem_cache_destroy(svadev_request_cache);
}

module_init(svadev_init);
module_exit(svadev_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Shared-virtual-addressing accelerator over vfio-user");
