// SPDX-License-Identifier: GPL-2.0
/*
 * The guest's end of upcall for a stock kernel, so that a disposable virtual machine can plug
 * CPUs, virtio-mmio and PCI devices when it is asked to. Written from docs/protocol.md section 4;
 * section numbers below are of that page.
 *
 * The answers are those of the 6.1 series, byte for byte. Where a real guest's thread would crash,
 * this one falls silent for ever, and where it would crash with the device-hotplug lock held, every
 * later request that needs the lock hangs: what a client sees is the same, and the kernel lives.
 *
 * The module cannot be unloaded: it ends with its machine.
 */
#define pr_fmt(fmt) "db-dev-mgr: " fmt

#include <linux/acpi.h>
#include <linux/bitmap.h>
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/init.h>
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/net.h>
#include <linux/pci.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/vm_sockets.h>
#include <net/sock.h>

#include <asm/cpu.h>

#define UPCALL_PORT 0xdb
#define BACKLOG 10
#define SERVICE_DEVICE_MANAGER 'd'
#define SERVICE_BYTE_LIMIT (10 * HZ)

#define MAGIC_VERSION 0x444d0100
#define MESSAGE_SIZE 1024
#define SHAREABLE_IRQ 5
#define BOOT_CPU 0

enum msg_type { ADD_CPU = 1, DEL_CPU = 2, ADD_MMIO = 5, DEL_MMIO = 6, ADD_PCI = 7, DEL_PCI = 8 };

/* Section 3: the messages. A request's load follows the header, a reply's the number `ret`. */
struct header {
	__le32 magic_version;
	__le32 msg_size;
	__le32 msg_type;
	__le32 msg_flags;
} __packed;

struct cpu_load {
	u8 count;
	u8 apic_ver;
	u8 apic_ids[256];
} __packed;

struct mmio_load {
	__le64 mmio_base;
	__le64 mmio_size;
	__le32 mmio_irq;
	__le32 padding;
} __packed;

struct pci_load {
	u8 busno;
	u8 devfn;
} __packed;

union request {
	u8 bytes[MESSAGE_SIZE];
	struct {
		struct header header;
		union {
			struct cpu_load cpu;
			struct mmio_load mmio;
			struct pci_load pci;
		};
	} __packed;
};

union reply {
	u8 bytes[MESSAGE_SIZE];
	struct {
		struct header header;
		__le32 ret;
		__le32 apic_index;
	} __packed;
};

/* Both buffers are cleared once and never again, so that stale bytes are where they would be. */
struct connection {
	struct socket *sock;
	union request request;
	union reply reply;
};

struct window {
	struct list_head list;
	u64 base, size;
	u32 irq;
	struct platform_device *device;
};

static unsigned long long boot_mmio[3 * 32];
static unsigned int boot_mmio_count;
module_param_array(boot_mmio, ullong, &boot_mmio_count, 0444);
MODULE_PARM_DESC(boot_mmio, "virtio-mmio windows to register at load: base,size,irq,...");

static unsigned int cpus = 1;
module_param(cpus, uint, 0444);
MODULE_PARM_DESC(cpus, "CPUs that there is room for; the kernel itself may have more");

static bool assign_bars = true;
module_param(assign_bars, bool, 0444);
MODULE_PARM_DESC(assign_bars, "Give a PCI device its BARs; Kata's driver leaves them as they are");

static LIST_HEAD(windows);
static DEFINE_MUTEX(windows_lock);
static DEFINE_MUTEX(hotplug_lock);
static bool hotplug_lock_stuck;
static int next_window_id;

/* What is left of a thread that a real kernel would have killed; idle, so that nothing warns. */
static void __noreturn fall_silent(const char *why)
{
	pr_warn("a real guest %s here; this connection is silent from now on\n", why);
	for (;;) {
		set_current_state(TASK_IDLE);
		schedule();
	}
}

static void take_hotplug_lock(void)
{
	mutex_lock(&hotplug_lock);
	if (hotplug_lock_stuck) {
		mutex_unlock(&hotplug_lock);
		fall_silent("waits for the lock of a dead thread");
	}
}

static void __noreturn die_with_hotplug_lock(void)
{
	hotplug_lock_stuck = true;
	mutex_unlock(&hotplug_lock);
	fall_silent("dies with the hotplug lock held");
}

/* CPUs. As many numbers are scanned as there are CPUs in the table, gaps or not. */

static DECLARE_BITMAP(lost, NR_CPUS);

static int find_cpu(u8 apic_id)
{
	int cpu, reach = num_present_cpus();

	for (cpu = 0; cpu < reach; cpu++)
		if (cpu_physical_id(cpu) == apic_id && !test_bit(cpu, lost))
			return cpu;
	return -1;
}

/*
 * An id that is there and was not found: behind a gap, or earlier in the same list. A real guest
 * registers the CPU a second time, which sysfs refuses, and it has lost its id by then. Here it
 * stays as it is and is never found again.
 */
static bool loses_its_id(u8 apic_id)
{
	int cpu;

	for_each_present_cpu(cpu)
		if (cpu_physical_id(cpu) == apic_id) {
			set_bit(cpu, lost);
			return true;
		}
	return false;
}

/* A number that an id has got once stays with it: new ids are refused when all are given away. */
static bool has_room(u8 apic_id)
{
	static DECLARE_BITMAP(seen, 256);

	__set_bit(cpu_physical_id(BOOT_CPU), seen);
	if (num_present_cpus() >= cpus)
		return false;
	if (!test_bit(apic_id, seen) && bitmap_weight(seen, 256) >= cpus)
		return false;
	__set_bit(apic_id, seen);
	return true;
}

/*
 * Make a CPU present, its number in `cpu`. From 6.10 on the kernel does that for nobody but the
 * driver of the firmware's processor objects, which is asked to look at the one with this id.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 10, 0)
static int make_present(u8 apic_id, int *cpu)
{
	int err;

	if (acpi_map_cpu(NULL, apic_id, U32_MAX, cpu))
		return -EINVAL;
	err = arch_register_cpu(*cpu);
	if (err) {
		pr_info("cpu %d cannot be added, register cpu failed %d\n", *cpu, err);
		acpi_unmap_cpu(*cpu);
	}
	return err;
}

static void make_absent(int cpu)
{
	arch_unregister_cpu(cpu);
	acpi_unmap_cpu(cpu);
}
#else
static int make_present(u8 apic_id, int *cpu)
{
	char name[32];
	acpi_handle processor;

	snprintf(name, sizeof(name), "\\_SB.CPUS.C%03X", apic_id);
	if (ACPI_FAILURE(acpi_get_handle(NULL, name, &processor)))
		return -EINVAL;
	acpi_scan_lock_acquire();
	acpi_bus_scan(processor);
	acpi_scan_lock_release();
	*cpu = find_cpu(apic_id);
	return *cpu < 0 ? -EINVAL : 0;
}

static void make_absent(int cpu)
{
	/* It stays present: what undoes this is not for modules. */
}
#endif

static int add_one_cpu(u8 apic_id)
{
	int cpu, err;

	pr_info("adding vcpu apic_id %d\n", apic_id);
	err = has_room(apic_id) ? 0 : -EINVAL;
	if (!err && loses_its_id(apic_id))
		return -EEXIST;
	if (err || make_present(apic_id, &cpu)) {
		pr_info("cpu (apic id %d) cannot be added, generic processor info failed\n",
			apic_id);
		return -EINVAL;
	}
	err = add_cpu(cpu);
	if (err) {
		pr_info("cpu %d cannot be added, cpu up failed: %d\n", cpu, err);
		make_absent(cpu);
	}
	return err;
}

static int add_cpus(const struct cpu_load *load, __le32 *apic_index)
{
	int i, err = 0;

	pr_info("add vcpu number: %d\n", load->count);
	for (i = 0; i < load->count; i++)
		if (find_cpu(load->apic_ids[i]) >= 0) {
			pr_info("cpu cannot be added: apci_id %d is already been used.\n",
				load->apic_ids[i]);
			return -EINVAL;
		}
	/* Each CPU takes the lock for itself: an empty list is answered whoever holds it. */
	for (i = 0; i < load->count && !err; i++) {
		take_hotplug_lock();
		err = add_one_cpu(load->apic_ids[i]);
		mutex_unlock(&hotplug_lock);
	}
	if (err)
		return err;
	*apic_index = cpu_to_le32(load->count);
	pr_info("cpu event notification: apic ids index %d\n", load->count);
	return 0;
}

static int del_one_cpu(u8 apic_id)
{
	int cpu, err;

	if (find_cpu(apic_id) == BOOT_CPU) { /* which needs no lock */
		pr_info("cannot del bootstrap processor.\n");
		return -EINVAL;
	}
	take_hotplug_lock();
	cpu = find_cpu(apic_id);
	if (cpu < 0)
		die_with_hotplug_lock();
	pr_info("deleting vcpu %d\n", cpu);
	err = remove_cpu(cpu);
	if (err)
		pr_info("del vcpu failed, err: %d\n", err);
	else
		make_absent(cpu);
	mutex_unlock(&hotplug_lock);
	return err;
}

static int del_cpus(const struct cpu_load *load, __le32 *apic_index)
{
	int i, err = 0;

	pr_info("del vcpu number : %d\n", load->count);
	if (load->count >= num_present_cpus()) {
		pr_info("cpu del parameter check error: cannot remove all vcpus\n");
		pr_info("cpu event notification: apic ids index 0\n");
		*apic_index = 0;
		return -EINVAL;
	}
	for (i = 0; i < load->count; i++)
		if (find_cpu(load->apic_ids[i]) < 0)
			fall_silent("dies");
	for (i = 0; i < load->count && !err; i++)
		err = del_one_cpu(load->apic_ids[i]);
	if (err)
		return err;
	*apic_index = cpu_to_le32(load->count);
	pr_info("cpu event notification: apic ids index %d\n", load->count);
	return 0;
}

/* virtio-mmio. */

static int register_window(u64 base, u64 size, u32 irq)
{
	struct resource resources[] = {
		{ .flags = IORESOURCE_MEM, .start = base, .end = base + size - 1 },
		{ .flags = IORESOURCE_IRQ, .start = irq, .end = irq },
	};
	struct platform_device_info info = {
		.name = "virtio-mmio",
		.id = next_window_id++,
		.res = resources,
		.num_res = ARRAY_SIZE(resources),
	};
	struct window *window = kzalloc(sizeof(*window), GFP_KERNEL);

	if (!window)
		return -ENOMEM;
	printk(KERN_INFO "virtio-mmio: Registering device virtio-mmio.%d at 0x%llx-0x%llx, IRQ %d.\n",
	       info.id, base, base + size - 1, irq);
	window->device = platform_device_register_full(&info);
	if (IS_ERR(window->device)) {
		int err = PTR_ERR(window->device);

		kfree(window);
		return err;
	}
	window->base = base;
	window->size = size;
	window->irq = irq;
	mutex_lock(&windows_lock);
	list_add_tail(&window->list, &windows);
	mutex_unlock(&windows_lock);
	return 0;
}

static int check_mmio(const union request *request)
{
	if (le32_to_cpu(request->header.msg_size) != sizeof(struct mmio_load))
		return -EINVAL;
	return request->mmio.mmio_irq ? 0 : -EINVAL;
}

static int add_mmio(const union request *request)
{
	u64 base = le64_to_cpu(request->mmio.mmio_base);
	u64 size = le64_to_cpu(request->mmio.mmio_size);
	u32 irq = le32_to_cpu(request->mmio.mmio_irq);
	u64 last = base + size - 1;
	struct window *window;
	int err = check_mmio(request);

	if (err)
		return err;
	mutex_lock(&windows_lock);
	list_for_each_entry(window, &windows, list) {
		/* Inclusive ends, compared strictly: one shared byte at an edge is no overlap. */
		if (base < window->base + window->size - 1 && last > window->base)
			err = -EEXIST;
		if (window->irq == irq && irq != SHAREABLE_IRQ)
			err = -EEXIST;
	}
	mutex_unlock(&windows_lock);
	if (err)
		return err;
	take_hotplug_lock();
	err = register_window(base, size, irq);
	mutex_unlock(&hotplug_lock);
	return err;
}

static struct window *find_window(const struct mmio_load *load)
{
	struct window *window;

	list_for_each_entry(window, &windows, list)
		if (window->base == le64_to_cpu(load->mmio_base) &&
		    window->size == le64_to_cpu(load->mmio_size) &&
		    window->irq == le32_to_cpu(load->mmio_irq))
			return window;
	return NULL;
}

static int del_mmio(const union request *request)
{
	struct window *window;
	int err = check_mmio(request);

	if (err)
		return err;
	mutex_lock(&windows_lock);
	window = find_window(&request->mmio);
	mutex_unlock(&windows_lock);
	if (!window)
		return -ENODEV;
	take_hotplug_lock();
	mutex_lock(&windows_lock);
	window = find_window(&request->mmio); /* another connection may have been faster */
	if (window)
		list_del(&window->list);
	mutex_unlock(&windows_lock);
	if (window) {
		platform_device_unregister(window->device);
		kfree(window);
	}
	mutex_unlock(&hotplug_lock);
	return window ? 0 : -ENODEV;
}

/* PCI; domain 0. */

static int add_pci(const struct pci_load *load)
{
	struct pci_bus *bus;
	int err = -ENODEV;

	pr_info("add pci device of busno: %02x, devfn: %02x\n", load->busno, load->devfn);
	pci_lock_rescan_remove();
	bus = pci_find_bus(0, load->busno);
	if (!bus) {
		pr_info("Could not find PCI bus for busno %02x\n", load->busno);
	} else if (!pci_scan_single_device(bus, load->devfn)) {
		pr_info("Could not find PCI device for slot %02x\n", load->devfn);
	} else {
		if (assign_bars)
			pci_bus_assign_resources(bus);
		else
			pci_bus_claim_resources(bus);
		pci_bus_add_devices(bus);
		err = 0;
	}
	pci_unlock_rescan_remove();
	return err;
}

static int del_pci(const struct pci_load *load)
{
	struct pci_dev *device;

	pr_info("remove pci device of busno: %02x, devfn: %02x\n", load->busno, load->devfn);
	device = pci_get_domain_bus_and_slot(0, load->busno, load->devfn);
	if (!device) {
		pr_info("Could not find PCI device for slot %02x\n", load->devfn);
		return -ENODEV;
	}
	pci_stop_and_remove_bus_device_locked(device);
	pci_dev_put(device);
	return 0;
}

/* The server. */

static void write_header(struct connection *connection, u32 msg_size)
{
	union reply *reply = &connection->reply;

	reply->header.magic_version = cpu_to_le32(MAGIC_VERSION);
	reply->header.msg_size = cpu_to_le32(msg_size);
	reply->header.msg_type = connection->request.header.msg_type;
	reply->header.msg_flags = 0;
}

/* Execute the request in the buffer, and rewrite the reply as far as a real guest does. */
static void execute(struct connection *connection)
{
	const union request *request = &connection->request;
	union reply *reply = &connection->reply;
	u32 type = le32_to_cpu(request->header.msg_type);
	int err;

	if (le32_to_cpu(request->header.magic_version) != MAGIC_VERSION) {
		write_header(connection, 0);
		return;
	}
	switch (type) {
	case ADD_CPU:
		err = add_cpus(&request->cpu, &reply->apic_index);
		break;
	case DEL_CPU:
		err = del_cpus(&request->cpu, &reply->apic_index);
		break;
	case ADD_MMIO:
		err = add_mmio(request);
		break;
	case DEL_MMIO:
		err = del_mmio(request);
		break;
	case ADD_PCI:
		err = add_pci(&request->pci);
		break;
	case DEL_PCI:
		err = del_pci(&request->pci);
		break;
	default:
		pr_info("db_devmgr_process : Not found valid command\n");
		write_header(connection, 0);
		reply->ret = cpu_to_le32(-1);
		return;
	}
	if (err) {
		pr_info("db_devmgr_process : Command run failed, err: %d\n", err);
		write_header(connection, 0);
		reply->ret = cpu_to_le32(err);
		return;
	}
	write_header(connection, type <= DEL_CPU ? sizeof(reply->apic_index) : 0);
	if (type < ADD_PCI) /* PCI success leaves the old number where it is */
		reply->ret = 0;
}

static int receive(struct connection *connection, void *buffer, size_t size)
{
	struct msghdr message = {};
	struct kvec part = { .iov_base = buffer, .iov_len = size };

	return kernel_recvmsg(connection->sock, &message, &part, 1, size, 0);
}

static int send_reply(struct connection *connection)
{
	size_t sent = 0;

	while (sent < MESSAGE_SIZE) {
		struct msghdr message = {};
		struct kvec part = {
			.iov_base = connection->reply.bytes + sent,
			.iov_len = MESSAGE_SIZE - sent,
		};
		int size = kernel_sendmsg(connection->sock, &message, &part, 1, part.iov_len);

		if (size <= 0)
			return size ?: -EPIPE;
		sent += size;
	}
	return 0;
}

/* One plain receive is one request, however many bytes it brings: section 4. */
static void manage_devices(struct connection *connection)
{
	int err;

	connection->reply.header.magic_version = cpu_to_le32(MAGIC_VERSION);
	for (;;) {
		err = send_reply(connection);
		if (err) {
			pr_info("db_devmgr_server : Server send message failed, err: %d\n", err);
			return;
		}
		if (receive(connection, connection->request.bytes, MESSAGE_SIZE) <= 0)
			return;
		execute(connection);
	}
}

static int serve(void *argument)
{
	struct connection *connection = argument;
	u8 service = 0;

	connection->sock->sk->sk_rcvtimeo = SERVICE_BYTE_LIMIT;
	if (receive(connection, &service, 1) == 1 && service == SERVICE_DEVICE_MANAGER) {
		connection->sock->sk->sk_rcvtimeo = MAX_SCHEDULE_TIMEOUT;
		manage_devices(connection);
	} else {
		printk(KERN_INFO "db-upcall-srv: Client connection closed, error code: %d\n", -1);
	}
	sock_release(connection->sock);
	kfree(connection);
	return 0;
}

static int listen_for_clients(void *argument)
{
	struct socket *listener = argument;

	for (;;) {
		struct connection *connection = kzalloc(sizeof(*connection), GFP_KERNEL);
		struct task_struct *thread;
		int err = connection ? kernel_accept(listener, &connection->sock, 0) : -ENOMEM;

		if (err) {
			printk(KERN_ERR "db-upcall-srv: Server accept err: %d\n", err);
			kfree(connection);
			msleep(100);
			continue;
		}
		thread = kthread_run(serve, connection, "db_dev_mgr");
		if (IS_ERR(thread)) {
			sock_release(connection->sock);
			kfree(connection);
		}
	}
	return 0;
}

static int __init upcall_lab_init(void)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = UPCALL_PORT,
	};
	struct socket *listener;
	struct task_struct *thread;
	unsigned int i;
	int err;

	BUILD_BUG_ON(sizeof(union request) != MESSAGE_SIZE);
	BUILD_BUG_ON(sizeof(union reply) != MESSAGE_SIZE);
	if (boot_mmio_count % 3)
		return -EINVAL;
	for (i = 0; i < boot_mmio_count; i += 3) {
		err = register_window(boot_mmio[i], boot_mmio[i + 1], boot_mmio[i + 2]);
		if (err)
			return err;
	}
	err = sock_create_kern(&init_net, AF_VSOCK, SOCK_STREAM, 0, &listener);
	if (err)
		goto failed;
	err = kernel_bind(listener, (struct sockaddr *)&address, sizeof(address));
	if (!err)
		err = kernel_listen(listener, BACKLOG);
	if (err) {
		sock_release(listener);
		goto failed;
	}
	thread = kthread_run(listen_for_clients, listener, "db-vsock-srv");
	return PTR_ERR_OR_ZERO(thread);
failed:
	printk(KERN_ERR "db-upcall-srv: Init server err: %d\n", err);
	return err;
}
module_init(upcall_lab_init);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("An upcall device manager for a disposable guest");
