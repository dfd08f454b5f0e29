/*
 * The lab's helper inside the guest; linked statically, run by init.
 *
 *   agent dump PORT    stream what vsockmon0 sees of upcall, as pcap, to PORT of the host
 *   agent shell PORT   serve commands on PORT: see docs/lab.md
 *
 * A command ends with a zero byte. An empty one gives a terminal with a shell on it; any other is
 * run by sh -c, and its output is followed by a zero byte and its exit status in decimal.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/if_packet.h>
#include <linux/vm_sockets.h>

#define UPCALL_PORT 0xdb
#define INTERFACE "vsockmon0"
#define LINKTYPE_VSOCK 271
#define PCAP_NANOSECONDS 0xa1b23c4d
#define PACKET_LIMIT (256 << 10)
#define RECEIVE_BUFFER (16 << 20)

/* The beginning of struct af_vsockmon_hdr. */
struct vsock_packet {
	uint64_t src_cid, dst_cid;
	uint32_t src_port, dst_port;
} __attribute__((packed));

static void fail(const char *what)
{
	fprintf(stderr, "agent: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void write_all(int fd, const void *bytes, size_t size)
{
	while (size) {
		ssize_t done = write(fd, bytes, size);

		if (done < 0)
			fail("write");
		bytes = (const char *)bytes + done;
		size -= done;
	}
}

static int open_interface(void)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = 0x0300 };
	int fd = socket(AF_PACKET, SOCK_RAW, 0x0300), room = RECEIVE_BUFFER, on = 1;

	address.sll_ifindex = if_nametoindex(INTERFACE);
	if (fd < 0 || !address.sll_ifindex)
		fail(INTERFACE);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)))
		fail(INTERFACE);
	return fd;
}

/* On microvm the channel's device comes with our module, which may be a moment later than this. */
static int connect_host(unsigned int port)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_HOST,
		.svm_port = port,
	};
	int attempt;

	for (attempt = 0; attempt < 500; attempt++) {
		int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

		if (fd < 0)
			break;
		if (!connect(fd, (struct sockaddr *)&address, sizeof(address)))
			return fd;
		close(fd);
		usleep(20000);
	}
	fail("connect to the host");
	return -1;
}

static void dump(unsigned int port)
{
	static struct { uint32_t seconds, nanoseconds, kept, size; } head;
	static const struct {
		uint32_t magic;
		uint16_t major, minor;
		uint32_t zone, accuracy, limit, linktype;
	} file = { PCAP_NANOSECONDS, 2, 4, 0, 0, PACKET_LIMIT, LINKTYPE_VSOCK };
	static char packet[sizeof(head) + PACKET_LIMIT];
	struct vsock_packet *vsock = (void *)(packet + sizeof(head));
	int interface = open_interface();
	int host = connect_host(port);

	write_all(host, &file, sizeof(file));
	for (;;) {
		char control[CMSG_SPACE(sizeof(struct timespec))];
		struct iovec part = { packet + sizeof(head), PACKET_LIMIT };
		struct msghdr message = {
			.msg_iov = &part, .msg_iovlen = 1,
			.msg_control = control, .msg_controllen = sizeof(control),
		};
		ssize_t size = recvmsg(interface, &message, MSG_TRUNC);
		struct cmsghdr *extra = CMSG_FIRSTHDR(&message);
		struct timespec at;

		if (size < 0)
			fail("receive");
		/* Our own stream is vsock too: told again, it would never end. */
		if (size < (ssize_t)sizeof(*vsock) ||
		    (vsock->src_port != UPCALL_PORT && vsock->dst_port != UPCALL_PORT))
			continue;
		clock_gettime(CLOCK_REALTIME, &at);
		if (extra && extra->cmsg_type == SCM_TIMESTAMPNS)
			memcpy(&at, CMSG_DATA(extra), sizeof(at));
		head.seconds = at.tv_sec;
		head.nanoseconds = at.tv_nsec;
		head.size = size;
		head.kept = size > PACKET_LIMIT ? PACKET_LIMIT : size;
		memcpy(packet, &head, sizeof(head));
		write_all(host, packet, sizeof(head) + head.kept);
	}
}

static void run_command(int stream, const char *line)
{
	struct pollfd both[] = { { -1, POLLIN, 0 }, { -1, POLLRDHUP, 0 } };
	char ending[16];
	int status;
	pid_t child = fork();

	if (!child) {
		setsid();
		dup2(stream, 0);
		dup2(stream, 1);
		dup2(stream, 2);
		execl("/bin/sh", "sh", "-c", line, NULL);
		_exit(127);
	}
	both[0].fd = syscall(SYS_pidfd_open, child, 0);
	both[1].fd = stream;
	/* Who asked may leave: then nobody waits for the command any more. */
	while (poll(both, 2, -1) < 0 || !(both[0].revents || both[1].revents))
		;
	if (!both[0].revents)
		kill(-child, SIGKILL);
	waitpid(child, &status, 0);
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	write_all(stream, ending, snprintf(ending, sizeof(ending), "%c%d", 0, status));
	shutdown(stream, SHUT_RDWR); /* what it left in the background holds the stream too */
}

static void run_terminal(int stream)
{
	int terminal;
	pid_t child = forkpty(&terminal, NULL, NULL, NULL);
	struct pollfd both[] = { { stream, POLLIN, 0 }, { terminal, POLLIN, 0 } };
	char bytes[4096];
	ssize_t size;

	if (!child) {
		setenv("TERM", "linux", 1);
		execl("/bin/sh", "-sh", NULL);
		_exit(127);
	}
	while (poll(both, 2, -1) > 0) {
		int from = both[0].revents ? 0 : 1;

		size = read(both[from].fd, bytes, sizeof(bytes));
		if (size <= 0)
			break;
		write_all(both[!from].fd, bytes, size);
	}
	kill(child, SIGHUP);
}

static void serve(int stream)
{
	char line[4096];
	size_t size = 0;

	while (size < sizeof(line) - 1 && read(stream, line + size, 1) == 1 && line[size])
		size++;
	line[size] = 0;
	if (size)
		run_command(stream, line);
	else
		run_terminal(stream);
	exit(0);
}

static void shell(unsigned int port)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_ANY,
		.svm_port = port,
	};
	int listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, 8))
		fail("listen");
	for (;;) {
		int stream = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (stream >= 0 && !fork()) {
			signal(SIGCHLD, SIG_DFL);
			serve(stream);
		}
		if (stream >= 0)
			close(stream);
	}
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	signal(SIGCHLD, SIG_IGN);
	if (!strcmp(argv[1], "dump"))
		dump(atoi(argv[2]));
	else
		shell(atoi(argv[2]));
	return 2;
}
