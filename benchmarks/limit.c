/*
 * limit.c: the least a Postfix policy server can do, as the reference for the others.
 *
 *     limit 127.0.0.1 PORT | limit SOCKET-PATH
 *
 * One thread on level-triggered epoll. It reads until it has seen the empty line that ends a
 * request and answers every request with the same reply, in one write. No attribute is parsed,
 * nothing is looked up, nothing is logged: what is left is the kernel's share, so no policy
 * server of one thread on this machine can be much faster. SIGTERM ends it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_FDS 65536       /* bounds the table below; more than any run here opens */
#define EVENTS 256          /* one turn of the loop */
#define READ_SIZE 8192      /* a real request has about 560 bytes: one read takes all of it */

static const char REPLY[] = "action=DUNNO\n\n";

/* The only state of a connection: did its bytes so far end in a newline? If so, a newline at the
 * start of the next read completes the request. */
static unsigned char after_newline[MAX_FDS];

static const char *socket_path;

static void fatal(const char *what)
{
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void on_sigterm(int signal_number)
{
    (void) signal_number;
    if (socket_path != NULL)
        unlink(socket_path);
    _exit(0);
}

static int listen_inet(const char *host, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        fprintf(stderr, "limit: not an IPv4 address: %s\n", host);
        exit(2);
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    /* accepted sockets inherit it, which saves a call per connection */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (bind(fd, (struct sockaddr *) &address, sizeof address) < 0)
        fatal("bind");
    return fd;
}

static int listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "limit: socket path too long: %s\n", path);
        exit(2);
    }
    strcpy(address.sun_path, path);
    if (bind(fd, (struct sockaddr *) &address, sizeof address) < 0)
        fatal(path);
    socket_path = path;
    return fd;
}

/* Returns 0 when the connection is to be closed. */
static int serve(int fd)
{
    char buffer[READ_SIZE];
    ssize_t size = recv(fd, buffer, sizeof buffer, 0);
    const char *from = buffer, *end = buffer + size, *stop;

    if (size <= 0)
        return size < 0 && (errno == EAGAIN || errno == EINTR);
    while (from < end) {
        if (after_newline[fd] && *from == '\n')
            stop = from + 1;
        else if ((stop = memmem(from, end - from, "\n\n", 2)) != NULL)
            stop += 2;
        else
            break;
        if (send(fd, REPLY, sizeof REPLY - 1, MSG_NOSIGNAL) != (ssize_t) sizeof REPLY - 1)
            return 0;
        after_newline[fd] = 0;
        from = stop;
    }
    if (from < end)
        after_newline[fd] = end[-1] == '\n';
    return 1;
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
    struct rlimit files;
    int listener, epoll = epoll_create1(0), fd, count;

    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: limit 127.0.0.1 PORT | limit SOCKET-PATH\n");
        return 2;
    }
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < MAX_FDS ? files.rlim_max : MAX_FDS;
    setrlimit(RLIMIT_NOFILE, &files);
    listener = argc == 3 ? listen_inet(argv[1], argv[2]) : listen_unix(argv[1]);
    signal(SIGTERM, on_sigterm);
    if (listen(listener, SOMAXCONN) < 0)
        fatal("listen");
    event.data.fd = listener;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);

    for (;;) {
        count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd != listener) {
                if (!serve(events[i].data.fd))
                    close(events[i].data.fd);
                continue;
            }
            fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0 && (errno == EMFILE || errno == ENFILE))
                fatal("accept");    /* it would only spin */
            if (fd < 0)
                continue;
            after_newline[fd] = 0;
            event.data.fd = fd;
            epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
