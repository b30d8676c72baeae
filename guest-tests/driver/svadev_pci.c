// SPDX-License-Identifier: GPL-2.0-only
/* svadev: the PCI side: probe, remove, shutdown, reset. */
#include <linux/bitfield.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/pci.h>

#include "svadev.h"

static int map_bars(struct svadev_device *sdev)
{
	struct pci_dev *pdev = sdev->pdev;
	void __iomem *doorbells;

	if (pci_resource_len(pdev, SVADEV_BAR_REGISTERS) < SVADEV_REG_BAR_SIZE ||
	    pci_resource_len(pdev, SVADEV_BAR_DOORBELLS) < 2 * SVADEV_DOORBELL_STRIDE)
		return dev_err_probe(&pdev->dev, -ENODEV, "BARs are too small\n");
	sdev->regs = pcim_iomap_region(pdev, SVADEV_BAR_REGISTERS, "svadev");
	if (IS_ERR(sdev->regs))
		return dev_err_probe(&pdev->dev, PTR_ERR(sdev->regs), "cannot map the registers\n");
	doorbells = pcim_iomap_region(pdev, SVADEV_BAR_DOORBELLS, "svadev");
	if (IS_ERR(doorbells))
		return dev_err_probe(&pdev->dev, PTR_ERR(doorbells), "cannot map the doorbells\n");
	sdev->doorbells = doorbells;
	return 0;
}

static void free_irqs(struct svadev_device *sdev)
{
	while (sdev->vectors)
		free_irq(sdev->irqs[--sdev->vectors], sdev);
}

/* One vector for the kernel queue, and what more there is for user queues to share. */
static int set_up_irqs(struct svadev_device *sdev)
{
	unsigned int max = min_t(u32, FIELD_GET(SVADEV_LIMITS_VECTORS, sdev->limits),
				 SVADEV_MAX_VECTORS);
	struct pci_dev *pdev = sdev->pdev;
	int count, err;

	count = pci_alloc_irq_vectors(pdev, 1, max, PCI_IRQ_MSIX);
	if (count < 0)
		return dev_err_probe(&pdev->dev, count, "no MSI-X vector\n");
	for (int vector = 0; vector < count; vector++) {
		int irq = pci_irq_vector(pdev, vector);

		err = request_threaded_irq(irq, vector ? svadev_user_queue_irq : svadev_queue_irq,
					   vector ? svadev_user_queue_irq_thread :
						    svadev_queue_irq_thread,
					   0, pci_name(pdev), sdev);
		if (err) {
			free_irqs(sdev);
			return dev_err_probe(&pdev->dev, err, "cannot request interrupt %d\n",
					     irq);
		}
		sdev->irqs[sdev->vectors++] = irq;
	}
	return 0;
}

static int svadev_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct svadev_device *sdev;
	int err;

	err = pcim_enable_device(pdev);
	if (err)
		return err;
	err = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	if (err)
		return err;

	sdev = svadev_device_alloc(pdev);
	if (IS_ERR(sdev))
		return PTR_ERR(sdev);
	err = map_bars(sdev);
	if (!err)
		err = svadev_hw_identify(sdev);
	if (!err)
		err = svadev_queue_alloc(sdev);
	if (err)
		goto free_queue;
	err = set_up_irqs(sdev);
	if (err)
		goto free_queue;
	pci_set_master(pdev);
	err = svadev_hw_start(sdev);
	if (err)
		goto free_irq;
	pci_set_drvdata(pdev, sdev);
	/* Last: from here on programs come. */
	err = svadev_device_publish(sdev);
	if (err)
		goto stop;
	return 0;

stop:
	scoped_guard(rwsem_write, &sdev->gate)
		svadev_queue_halt(sdev, SVADEV_GONE);
free_irq:
	pci_clear_master(pdev);
	free_irqs(sdev);
free_queue:
	svadev_queue_free(sdev);
	put_device(&sdev->dev);
	return err;
}

/* Waits until the function does nothing any more. One that does not stop loses the bus. */
static void wait_until_quiet(struct svadev_device *sdev)
{
	int err = -EBUSY;

	while (err == -EBUSY) {
		guard(rwsem_write)(&sdev->gate);
		err = svadev_hw_stop(sdev);
		if (err && err != -EBUSY) {
			pci_clear_master(sdev->pdev);
			sdev->lost = true;
		}
	}
}

/*
 * Files may be open, and calls under way. In this order:
 *  1. no new files;
 *  2. the function stops and all work ends as aborted. The state says so for good, so that calls
 *     that wait return, and later ones do not touch the hardware;
 *  3. every context is unbound: the SVA core's handles need the PCI device and its group, which may
 *     go when we return. Not before the function has stopped and the kernel has answered its page
 *     requests, however long that takes: the kernel would free them under its own workers;
 *  4. nothing of ours is called any more: interrupt, works;
 *  5. no bus master, so even a device that did not stop leaves the rings alone; then they are
 * freed. The structure itself goes with the last file.
 */
static void svadev_remove(struct pci_dev *pdev)
{
	struct svadev_device *sdev = pci_get_drvdata(pdev);
	struct svadev_context *context;

	svadev_device_unpublish(sdev);

	scoped_guard(rwsem_write, &sdev->gate)
		svadev_queue_halt(sdev, SVADEV_GONE);

	wait_until_quiet(sdev);

	scoped_guard(mutex, &sdev->contexts_lock) {
		list_for_each_entry(context, &sdev->contexts, node)
			svadev_context_evict(context);
		list_for_each_entry(context, &sdev->orphans, node)
			svadev_context_evict(context);
	}

	cancel_delayed_work_sync(&sdev->orphan_work);
	svadev_context_free_orphans(sdev);
	cancel_delayed_work_sync(&sdev->watchdog);
	/* Only tries the device lock, which we hold, so this does not wait for itself. */
	cancel_work_sync(&sdev->reset_work);
	pci_clear_master(pdev);
	free_irqs(sdev);
	svadev_queue_free(sdev);
	put_device(&sdev->dev);
}

/*
 * Reboot or kexec: the next kernel must find a function that does no DMA. Contexts stay; nobody
 * comes back to them.
 */
static void svadev_shutdown(struct pci_dev *pdev)
{
	struct svadev_device *sdev = pci_get_drvdata(pdev);

	scoped_guard(rwsem_write, &sdev->gate)
		svadev_queue_halt(sdev, SVADEV_GONE);
	pci_clear_master(pdev);
}

/*
 * Before a reset by the PCI core (function level reset through sysfs, or our own reset_work).
 * Bindings stay: kernels that have pci_dev_reset_iommu_prepare() move the function's PASIDs to a
 * blocking domain during the reset and back afterwards; in others the PASID entries, which are the
 * IOMMU's, simply stay. Enable bits of ATS, PRI and PASID are in pci_restore_state().
 */
static void svadev_reset_prepare(struct pci_dev *pdev)
{
	struct svadev_device *sdev = pci_get_drvdata(pdev);

	scoped_guard(rwsem_write, &sdev->gate)
		svadev_queue_halt(sdev, SVADEV_RESETTING);
	for (unsigned int vector = 0; vector < sdev->vectors; vector++)
		synchronize_irq(sdev->irqs[vector]);
	svadev_context_hold_all(sdev);
}

/*
 * An interrupt of before may still come, if reset_prepare found the function out of service already:
 * it finds the ring not live, or completions whose generation matches nothing.
 */
static int start_again(struct svadev_device *sdev, bool reset)
{
	int err;

	svadev_context_let_go_all(sdev);
	scoped_guard(rwsem_write, &sdev->gate) {
		err = svadev_hw_start(sdev);
		guard(spinlock_irq)(&sdev->lock);
		sdev->stats.resets += reset;
		svadev_set_state(sdev, err ? SVADEV_FAILED : SVADEV_RUNNING);
	}
	wake_up_all(&sdev->state_wait);
	wake_up_all(&sdev->room_wait);
	svadev_state_changed(sdev);
	if (err)
		dev_err(&sdev->pdev->dev, "out of service until a reset succeeds: %d\n", err);
	return err;
}

static void svadev_reset_done(struct pci_dev *pdev)
{
	start_again(pci_get_drvdata(pdev), true);
}

/*
 * Suspend to RAM or disk: the function may lose its state, so all work ends as aborted, user queues
 * are lost, and bindings stay, as with a reset. Programs are frozen.
 */
static int svadev_suspend(struct device *dev)
{
	svadev_reset_prepare(to_pci_dev(dev));
	return 0;
}

static int svadev_resume(struct device *dev)
{
	return start_again(pci_get_drvdata(to_pci_dev(dev)), false);
}

static DEFINE_SIMPLE_DEV_PM_OPS(svadev_pm_ops, svadev_suspend, svadev_resume);

static const struct pci_error_handlers svadev_error_handlers = {
	.reset_prepare = svadev_reset_prepare,
	.reset_done = svadev_reset_done,
};

static const struct pci_device_id svadev_ids[] = {
	{ PCI_DEVICE(SVADEV_PCI_VENDOR_ID, SVADEV_PCI_DEVICE_ID_ACCELERATOR) },
	{}
};
MODULE_DEVICE_TABLE(pci, svadev_ids);

struct pci_driver svadev_pci_driver = {
	.name = "svadev",
	.id_table = svadev_ids,
	.probe = svadev_probe,
	.remove = svadev_remove,
	.shutdown = svadev_shutdown,
	.err_handler = &svadev_error_handlers,
	.driver.pm = pm_sleep_ptr(&svadev_pm_ops),
	/*
	 * One after the other in the bus' order, so that /dev/svadevN follows the functions'
	 * addresses.
	 */
	.driver.probe_type = PROBE_FORCE_SYNCHRONOUS,
};
