/* The second floor: a reader in C that makes the system calls of the agent's way to a kill, and nothing else.
 *
 *     reader SOCKET
 *
 * Listens on a unix socket, takes alerts a line each, finds "proc.pid" in each, then: pidfd_open, a taskstats query,
 * readlink exe, cgroup, ns/mnt, fstat and poll of the pidfd, pidfd_send_signal(SIGKILL). It proves nothing and guards
 * nothing. Says "ready" when it listens; ends when its standard input does.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/taskstats.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static struct {
    struct nlmsghdr head;
    struct genlmsghdr genl;
    struct nlattr attr;
    char payload[16];
} request;

static int netlink_fd = -1;

static void ask(int type, int cmd, int attr, const void *data, size_t size)
{
    request.head = (struct nlmsghdr){.nlmsg_len = NLMSG_HDRLEN + GENL_HDRLEN + NLA_HDRLEN + NLA_ALIGN(size),
                                     .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST};
    request.genl = (struct genlmsghdr){.cmd = cmd, .version = 1};
    request.attr = (struct nlattr){.nla_len = NLA_HDRLEN + size, .nla_type = attr};
    memcpy(request.payload, data, size);
    if (send(netlink_fd, &request, request.head.nlmsg_len, 0) < 0)
        netlink_fd = -1;
}

static int taskstats_family(void)
{
    static char answer[8192];
    netlink_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    ask(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, TASKSTATS_GENL_NAME, sizeof TASKSTATS_GENL_NAME);
    ssize_t got = netlink_fd < 0 ? -1 : recv(netlink_fd, answer, sizeof answer, 0);
    for (ssize_t at = NLMSG_HDRLEN + GENL_HDRLEN; at + NLA_HDRLEN <= got;) {
        struct nlattr *attr = (struct nlattr *)(answer + at);
        if (attr->nla_type == CTRL_ATTR_FAMILY_ID)
            return *(unsigned short *)(answer + at + NLA_HDRLEN);
        if (attr->nla_len < NLA_HDRLEN)
            break;
        at += NLA_ALIGN(attr->nla_len);
    }
    return 0;
}

static void respond(int family, int pid)
{
    static char buffer[16384];
    char path[64];
    struct stat status;
    int fd, pidfd = syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        return;
    if (family) {
        ask(family, TASKSTATS_CMD_GET, TASKSTATS_CMD_ATTR_PID, &pid, sizeof pid);
        recv(netlink_fd, buffer, sizeof buffer, 0);
    }
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    readlink(path, buffer, sizeof buffer);
    snprintf(path, sizeof path, "/proc/%d/cgroup", pid);
    if ((fd = open(path, O_RDONLY | O_CLOEXEC)) >= 0) {
        read(fd, buffer, sizeof buffer);
        close(fd);
    }
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", pid);
    readlink(path, buffer, sizeof buffer);
    fstat(pidfd, &status);
    struct pollfd gone = {.fd = pidfd, .events = POLLIN};
    if (poll(&gone, 1, 0) == 0)
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
    close(pidfd);
}

int main(int argc, char **argv)
{
    static char data[65536 + 1];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path)
        return 2;
    strcpy(address.sun_path, argv[1]);
    int family = taskstats_family(), listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8))
        return 1;
    puts("ready");
    fflush(stdout);
    int sender = accept(listener, NULL, NULL), poller = epoll_create1(EPOLL_CLOEXEC);
    int watched[] = {sender, STDIN_FILENO};
    for (int number = 0; number < 2; number++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = watched[number]};
        epoll_ctl(poller, EPOLL_CTL_ADD, watched[number], &event);
    }
    for (struct epoll_event event;;) {
        if (epoll_wait(poller, &event, 1, -1) < 0 && errno == EINTR)
            continue;
        ssize_t got = event.data.fd == sender ? read(sender, data, sizeof data - 1) : 0;
        if (got <= 0)
            return 0;
        data[got] = 0;
        for (char *at = data; (at = strstr(at, "\"proc.pid\":"));) {
            int pid = (int)strtol(at += sizeof "\"proc.pid\":" - 1, NULL, 10);
            if (pid > 1)
                respond(family, pid);
        }
    }
}
