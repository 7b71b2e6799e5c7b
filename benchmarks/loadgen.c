/*
 * loadgen.c: asks a Postfix policy server (or Redis) as fast as it answers, and says how fast
 * that was.
 *
 *     loadgen -t inet:HOST:PORT|unix:PATH -r REQUEST-FILE -A FIRST-ADDRESS/COUNT [options]
 *     loadgen -m redis -t ... -A FIRST-ADDRESS/COUNT [-k KEY-PREFIX] [options]
 *
 *     -A FIRST/COUNT  IPv4 addresses to ask about: COUNT of them from FIRST on, drawn at random
 *     -B FIRST/COUNT  a second run: each connection draws from -A and -B in turn
 *     -c CONNECTIONS  (1)
 *     -d SECONDS      measured time (5)
 *     -w SECONDS      time under load before the measurement (1)
 *     -s SEED         of the addresses, not 0 (1)
 *     -m MODE         policy (default), or redis: GET <KEY-PREFIX><address>
 *     -k KEY-PREFIX   (pbs:login:)
 *
 * Every connection has exactly one request outstanding, as a Postfix smtpd process has: the next
 * one is sent when the reply to the last is complete. The latency is taken from just before a
 * request is sent until its complete reply has been read; it contains the time a reply waits for
 * this program, which is what the CPU seconds in the output are there to judge.
 *
 * One thread on edge-triggered epoll. A request costs one clock reading, one recv, one send and
 * about 600 copied bytes; all replies of one turn of the loop share an epoll_wait.
 *
 * The output is one JSON object; benchmarks/README.md describes it. Exit status: 0 measured,
 * 1 not measured (some connection had no reply within OPEN_SECONDS), 2 wrong usage. It ends at the
 * latest OPEN_SECONDS + warm-up + measured time after its start, whatever the server does: no
 * call blocks except epoll_wait, and that one has a timeout.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define OPEN_SECONDS 10         /* for every connection to be open and answered once */
#define TICK_NS 5000000ULL      /* connections are opened in portions, one portion a tick, so that */
#define OPEN_PER_TICK 16        /* a server with a short listen queue is not overrun */
#define EVENTS 256
#define MAX_REQUEST 8192        /* fits the send buffer of a fresh socket: a short send is a fault */
#define MAX_REPLY 1024          /* Postfix has no longer action than one SMTP reply line or two */
#define MAX_SECONDS 3600
#define ADDRESS_SIZE 15         /* 255.255.255.255 */

#define NS 1000000000ULL

static void fail(int status, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(status);
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);     /* no system call: the vDSO answers */
    return (uint64_t) t.tv_sec * NS + (uint64_t) t.tv_nsec;
}

/*
 * Latencies: 128 buckets for each power of two nanoseconds, so a bucket is at most 0.8 % wide and
 * its middle at most 0.4 % wrong; below 256 ns a bucket is one nanosecond.
 */
#define HALF 128
#define BUCKETS (58 * HALF)

static uint64_t histogram[BUCKETS], latency_max;

static void record(uint64_t ns)
{
    int shift = ns < 2 * HALF ? 0 : 63 - __builtin_clzll(ns) - 7;

    histogram[(unsigned) shift * HALF + (ns >> shift)]++;
    if (ns > latency_max)
        latency_max = ns;
}

static double percentile_us(double share, uint64_t total)
{
    uint64_t rank = (uint64_t) (share * (double) total), seen = 0;

    for (unsigned i = 0; total > 0 && i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > rank || seen == total) {
            unsigned shift = i < 2 * HALF ? 0 : i / HALF - 1;
            uint64_t low = (uint64_t) (i - shift * HALF) << shift;
            uint64_t middle = low + ((1ULL << shift) >> 1);

            return (double) (middle < latency_max ? middle : latency_max) / 1000.0;
        }
    }
    return 0.0;
}

/* Addresses: a run of consecutive ones, from which xorshift64* draws. */
struct run {
    uint32_t first, count;
};

static struct run runs[2];
static int run_count = 1;
static uint64_t random_state = 1;

static struct run parse_run(const char *text)
{
    char first[INET_ADDRSTRLEN], *end;
    const char *slash = strchr(text, '/');
    struct in_addr address;
    unsigned long long count;

    if (slash == NULL || (size_t) (slash - text) >= sizeof first)
        fail(2, "expected FIRST-ADDRESS/COUNT: %s", text);
    memcpy(first, text, (size_t) (slash - text));
    first[slash - text] = '\0';
    count = strtoull(slash + 1, &end, 10);
    if (inet_pton(AF_INET, first, &address) != 1 || slash[1] < '0' || slash[1] > '9' || *end != '\0'
        || count == 0 || count > 0xffffffffULL - ntohl(address.s_addr) + 1 || count > 0xffffffffULL)
        fail(2, "expected an IPv4 address/how many from it on: %s", text);
    return (struct run) {ntohl(address.s_addr), (uint32_t) count};
}

static uint32_t draw_address(const struct run *run)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    /* the high half scaled to the count: no division, and no low bits */
    return run->first + (uint32_t) (((random_state * 0x2545f4914f6cdd1dULL) >> 32) * run->count >> 32);
}

static struct { char text[4]; unsigned size; } octets[256];

static unsigned write_address(char *to, uint32_t address)
{
    char *at = to;

    for (int shift = 24; shift >= 0; shift -= 8) {
        unsigned octet = address >> shift & 255;

        memcpy(at, octets[octet].text, 3);      /* always three: a constant size is one move */
        at += octets[octet].size;
        *at++ = '.';
    }
    return (unsigned) (at - 1 - to);
}

/*
 * The request: head, address, tail. The tail stays where it is; the address and the head are
 * written in front of it, so a request is always one piece and its tail is never copied. One buffer
 * serves all connections, for send() has copied it when it returns. In redis mode the head
 * depends on the length of the key, so there is a head for each length of an address.
 */
static char request_room[2 * MAX_REQUEST + ADDRESS_SIZE];
static char *const tail = request_room + MAX_REQUEST + ADDRESS_SIZE;
static size_t tail_size;
static struct { char text[MAX_REQUEST]; size_t size; } heads[ADDRESS_SIZE + 1];

static void load_policy_request(const char *path)
{
    static const char name[] = "client_address=";
    char text[MAX_REQUEST + 1], *line, *value, *value_end;
    FILE *file = fopen(path, "rb");
    size_t size;

    if (file == NULL)
        fail(2, "%s: %s", path, strerror(errno));
    size = fread(text, 1, sizeof text, file);
    fclose(file);
    if (size > MAX_REQUEST)
        fail(2, "%s: longer than %d bytes", path, MAX_REQUEST);
    if (size < 2 || memmem(text, size, "\n\n", 2) != text + size - 2)
        fail(2, "%s: not one request that ends in an empty line", path);
    for (line = text; strncmp(line, name, sizeof name - 1) != 0; line++)
        if ((line = memchr(line, '\n', (size_t) (text + size - 2 - line))) == NULL)
            fail(2, "%s: no line client_address=", path);
    value = line + sizeof name - 1;
    value_end = memchr(value, '\n', (size_t) (text + size - value));
    tail_size = (size_t) (text + size - value_end);
    memcpy(tail, value_end, tail_size);
    for (int i = 0; i <= ADDRESS_SIZE; i++) {
        heads[i].size = (size_t) (value - text);
        memcpy(heads[i].text, text, heads[i].size);
    }
}

static void load_redis_request(const char *key_prefix)
{
    if (strlen(key_prefix) > 1024)
        fail(2, "-k: longer than 1024 bytes");
    tail_size = 2;
    memcpy(tail, "\r\n", 2);
    for (size_t i = 0; i <= ADDRESS_SIZE; i++)
        heads[i].size = (size_t) sprintf(heads[i].text, "*2\r\n$3\r\nGET\r\n$%zu\r\n%s",
                                         strlen(key_prefix) + i, key_prefix);
}

/*
 * Replies. A check returns which class of reply these bytes are, INCOMPLETE, or SURPRISE: not this
 * protocol, or more than the one reply that was asked for.
 */
enum { OK, DUNNO, DEFER, OTHER, POLICY_CLASSES, FOUND = 0, NIL, REDIS_CLASSES };
enum { INCOMPLETE = -1, SURPRISE = -2 };

static const char *const policy_names[] = {"OK", "DUNNO", "DEFER", "other"};
static const char *const redis_names[] = {"found", "nil"};

static int check_policy_reply(const char *reply, size_t size)
{
    static const char name[] = "action=";
    const size_t name_size = sizeof name - 1;
    const char *action = reply + name_size, *end;

    if (memcmp(reply, name, size < name_size ? size : name_size) != 0)
        return SURPRISE;
    if (size <= name_size || (end = memchr(action, '\n', size - name_size)) == NULL)
        return INCOMPLETE;
    if (end == action)
        return SURPRISE;        /* Postfix would take an empty action for a permit */
    if (end + 1 == reply + size)
        return INCOMPLETE;
    if (end[1] != '\n' || end + 2 != reply + size)
        return SURPRISE;
    if (end - action >= 5 && memcmp(action, "DEFER", 5) == 0)
        return DEFER;           /* DEFER_IF_REJECT and DEFER_IF_PERMIT too */
    size = strcspn(action, " \n");
    if (size == 5 && memcmp(action, "DUNNO", 5) == 0)
        return DUNNO;
    return size == 2 && memcmp(action, "OK", 2) == 0 ? OK : OTHER;
}

static int check_redis_reply(const char *reply, size_t size)
{
    const char *line_end = memchr(reply, '\n', size);
    size_t value_size = 0, reply_size;

    if (reply[0] != '$')
        return SURPRISE;        /* an error, or not Redis */
    if (line_end == NULL)
        return INCOMPLETE;
    if (size == 5 && memcmp(reply, "$-1\r\n", 5) == 0)
        return NIL;
    for (const char *digit = reply + 1; digit < line_end - 1; digit++) {
        if (*digit < '0' || *digit > '9' || value_size > MAX_REPLY)
            return SURPRISE;
        value_size = value_size * 10 + (size_t) (*digit - '0');
    }
    reply_size = (size_t) (line_end + 1 - reply) + value_size + 2;
    if (line_end < reply + 3 || line_end[-1] != '\r' || size > reply_size)
        return SURPRISE;
    if (size < reply_size)
        return INCOMPLETE;
    return memcmp(reply + size - 2, "\r\n", 2) == 0 ? FOUND : SURPRISE;
}

static int (*check_reply)(const char *, size_t) = check_policy_reply;
static const char *const *class_names = policy_names;
static int class_count = POLICY_CLASSES;

/* Connections. */
struct connection {
    int fd;                     /* -1: closed, to be opened at a tick */
    uint8_t connecting, answered, run;
    uint16_t size;              /* bytes of the reply so far */
    uint64_t sent_at;           /* 0: no request outstanding */
    char reply[MAX_REPLY];
};

static struct connection *connections;
static unsigned connection_count = 1, closed_count, answered_count;
static int epoll;
static struct sockaddr_storage target;
static socklen_t target_size;

static uint64_t replies[2][POLICY_CLASSES];     /* by run and class, in the measured time */
static uint64_t errors, connect_failures;       /* from the start on: neither should ever happen */

static void parse_target(const char *text)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *found;
    struct sockaddr_un *address = (struct sockaddr_un *) &target;
    char host[64];
    const char *colon = strrchr(text, ':');

    if (strncmp(text, "unix:", 5) == 0) {
        if (text[5] == '\0' || strlen(text + 5) >= sizeof address->sun_path)
            fail(2, "-t: no socket path, or too long a one: %s", text);
        address->sun_family = AF_UNIX;
        strcpy(address->sun_path, text + 5);
        target_size = sizeof *address;
        return;
    }
    if (strncmp(text, "inet:", 5) != 0 || colon < text + 5 || (size_t) (colon - text - 5) >= sizeof host)
        fail(2, "-t: expected inet:HOST:PORT or unix:PATH: %s", text);
    memcpy(host, text + 5, (size_t) (colon - text - 5));
    host[colon - text - 5] = '\0';
    if (getaddrinfo(host, colon + 1, &hints, &found) != 0)
        fail(2, "-t: expected a numeric address and port: %s", text);
    memcpy(&target, found->ai_addr, found->ai_addrlen);
    target_size = found->ai_addrlen;
    freeaddrinfo(found);
}

static void close_connection(struct connection *c, uint64_t *counter)
{
    close(c->fd);
    c->fd = -1;
    c->sent_at = 0;
    closed_count++;
    ++*counter;
}

static void send_request(struct connection *c, uint64_t now)
{
    char address[4 * 4], *start;
    unsigned address_size;
    ssize_t size;

    c->run = run_count == 2 && !c->run;
    address_size = write_address(address, draw_address(&runs[c->run]));
    start = tail - address_size;
    memcpy(start, address, address_size);
    start -= heads[address_size].size;
    memcpy(start, heads[address_size].text, heads[address_size].size);
    c->size = 0;
    c->sent_at = now;
    size = tail + tail_size - start;
    if (send(c->fd, start, (size_t) size, MSG_NOSIGNAL) != size)
        close_connection(c, &errors);
}

/* Epoll is told once, and never again, what to wait for. EPOLLOUT comes when a TCP connection is
 * established; after that it says nothing this program needs, but changing it costs a call. */
static void open_connection(struct connection *c)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    int on = 1;

    c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        fail(1, "socket: %s", strerror(errno));
    closed_count--;
    if (target.ss_family != AF_UNIX) {
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        event.events |= EPOLLOUT;
    }
    c->connecting = connect(c->fd, (struct sockaddr *) &target, target_size) < 0;
    if (c->connecting && errno != EINPROGRESS) {
        uint64_t full_listen_queue = 0;

        /* a unix socket whose listen queue is full says EAGAIN: no fault, the next tick tries again */
        close_connection(c, errno == EAGAIN ? &full_listen_queue : &connect_failures);
        return;
    }
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event) < 0)
        fail(1, "epoll_ctl: %s", strerror(errno));
    if (!c->connecting)
        send_request(c, now_ns());
}

static void open_closed_connections(void)
{
    unsigned portion = OPEN_PER_TICK;

    for (unsigned i = 0; i < connection_count && closed_count > 0 && portion > 0; i++)
        if (connections[i].fd < 0) {
            open_connection(&connections[i]);
            portion--;
        }
}

static void finish_connecting(struct connection *c)
{
    int problem = 0;
    socklen_t size = sizeof problem;

    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &problem, &size);
    if (problem != 0) {
        close_connection(c, &connect_failures);
        return;
    }
    c->connecting = 0;
    send_request(c, now_ns());
}

/* Edge-triggered: what is not read now is not announced again. But a complete reply is all there
 * is until the next request is sent, so only an incomplete one calls for another recv. */
static void read_reply(struct connection *c)
{
    for (;;) {
        ssize_t size = recv(c->fd, c->reply + c->size, MAX_REPLY - c->size, 0);
        uint64_t now;
        int class;

        if (size < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (size <= 0) {
            close_connection(c, &errors);
            return;
        }
        now = now_ns();
        c->size = (uint16_t) (c->size + size);
        class = check_reply(c->reply, c->size);
        if (class == INCOMPLETE && c->size < MAX_REPLY)
            continue;
        if (class < 0) {
            close_connection(c, &errors);
            return;
        }
        record(now - c->sent_at);
        replies[c->run][class]++;
        answered_count += !c->answered;
        c->answered = 1;
        send_request(c, now);
        return;
    }
}

static void serve_event(const struct epoll_event *event)
{
    struct connection *c = event->data.ptr;

    if (c->connecting)
        finish_connecting(c);
    else if (event->events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        read_reply(c);
    /* the reply and the end of the stream in one event: the end is not announced again */
    if (c->fd >= 0 && event->events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP))
        close_connection(c, &errors);
}

/* Serves everything until `end`, or until every connection has had a reply if `opening`. Returns
 * the time, as of which all counters are. */
static uint64_t run_until(uint64_t end, int opening)
{
    static uint64_t next_tick;
    struct epoll_event events[EVENTS];
    uint64_t now = now_ns(), wake;
    int count;

    while (now < end && !(opening && answered_count == connection_count)) {
        if (closed_count > 0 && now >= next_tick) {
            open_closed_connections();
            next_tick = now + TICK_NS;
        }
        wake = closed_count > 0 && next_tick < end ? next_tick : end;
        count = epoll_wait(epoll, events, EVENTS, wake > now ? (int) ((wake - now + 999999) / 1000000) : 0);
        for (int i = 0; i < count; i++)
            serve_event(&events[i]);
        now = now_ns();
    }
    return now;
}

static double seconds(struct timeval t)
{
    return (double) t.tv_sec + (double) t.tv_usec / 1e6;
}

static void print_classes(const uint64_t *first, const uint64_t *second)
{
    for (int i = 0; i < class_count; i++)
        printf("%s\"%s\": %llu", i == 0 ? "{" : ", ", class_names[i],
               (unsigned long long) (first[i] + (second != NULL ? second[i] : 0)));
    printf("}");
}

static void measure(double warm_up, double measured)
{
    struct rusage before, after;
    uint64_t started, ended, total = 0, oldest = 0;
    double elapsed, user, system;

    run_until(now_ns() + OPEN_SECONDS * NS, 1);
    if (answered_count < connection_count)
        fail(1, "%u of %u connections had a reply within %d s (%llu errors, %llu failures to connect)",
             answered_count, connection_count, OPEN_SECONDS, (unsigned long long) errors,
             (unsigned long long) connect_failures);
    run_until(now_ns() + (uint64_t) (warm_up * 1e9), 0);

    memset(histogram, 0, sizeof histogram);
    memset(replies, 0, sizeof replies);
    latency_max = 0;
    getrusage(RUSAGE_SELF, &before);
    started = now_ns();
    ended = run_until(started + (uint64_t) (measured * 1e9), 0);
    getrusage(RUSAGE_SELF, &after);

    for (int run = 0; run < 2; run++)
        for (int i = 0; i < class_count; i++)
            total += replies[run][i];
    for (unsigned i = 0; i < connection_count; i++)
        if (connections[i].sent_at != 0 && connections[i].sent_at < ended
            && ended - connections[i].sent_at > oldest)
            oldest = ended - connections[i].sent_at;
    elapsed = (double) (ended - started) / 1e9;
    user = seconds(after.ru_utime) - seconds(before.ru_utime);
    system = seconds(after.ru_stime) - seconds(before.ru_stime);

    printf("{\"connections\": %u, \"requests\": %llu, \"seconds\": %.3f, \"rate\": %.1f, ",
           connection_count, (unsigned long long) total, elapsed, (double) total / elapsed);
    printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"max_us\": %.1f, \"oldest_unanswered_us\": %.1f, ",
           percentile_us(0.5, total), percentile_us(0.99, total), percentile_us(0.999, total),
           (double) latency_max / 1000.0, (double) oldest / 1000.0);
    printf("\"actions\": ");
    print_classes(replies[0], replies[1]);
    printf(", \"actions_by_run\": [");
    for (int run = 0; run < run_count; run++) {
        printf(run == 0 ? "" : ", ");
        print_classes(replies[run], NULL);
    }
    printf("], \"errors\": %llu, \"connect_failures\": %llu, ",
           (unsigned long long) errors, (unsigned long long) connect_failures);
    printf("\"cpu_seconds\": %.3f, \"cpu_user_seconds\": %.3f, \"cpu_system_seconds\": %.3f}\n",
           user + system, user, system);
}

static double parse_number(const char *text, char option, double low, double high)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end != '\0' || !(value >= low && value <= high))
        fail(2, "-%c: expected a number from %g to %g: %s", option, low, high, text);
    return value;
}

static void raise_file_limit(rlim_t wanted)
{
    struct rlimit files;

    getrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur >= wanted)
        return;
    if (files.rlim_max < wanted)
        fail(2, "-c: the hard limit of open files is %llu", (unsigned long long) files.rlim_max);
    files.rlim_cur = wanted;
    setrlimit(RLIMIT_NOFILE, &files);
}

int main(int argc, char **argv)
{
    static const char usage[] = "usage: loadgen -t inet:HOST:PORT|unix:PATH -A FIRST-ADDRESS/COUNT"
        " {-r REQUEST-FILE | -m redis [-k KEY-PREFIX]} [-B FIRST-ADDRESS/COUNT] [-c CONNECTIONS]"
        " [-d SECONDS] [-w SECONDS] [-s SEED]";
    const char *request_file = NULL, *key_prefix = "pbs:login:";
    double measured = 5, warm_up = 1;
    int option, redis = 0;

    while ((option = getopt(argc, argv, "t:c:d:w:r:A:B:m:k:s:")) != -1)
        switch (option) {
        case 't': parse_target(optarg); break;
        case 'c': connection_count = (unsigned) parse_number(optarg, 'c', 1, 60000); break;
        case 'd': measured = parse_number(optarg, 'd', 0.001, MAX_SECONDS); break;
        case 'w': warm_up = parse_number(optarg, 'w', 0, MAX_SECONDS); break;
        case 's': random_state = (uint64_t) parse_number(optarg, 's', 1, 1e15); break;
        case 'r': request_file = optarg; break;
        case 'A': runs[0] = parse_run(optarg); break;
        case 'B': runs[1] = parse_run(optarg); run_count = 2; break;
        case 'k': key_prefix = optarg; break;
        case 'm':
            redis = strcmp(optarg, "redis") == 0;
            if (!redis && strcmp(optarg, "policy") != 0)
                fail(2, "-m: expected policy or redis: %s", optarg);
            break;
        default: fail(2, "%s", usage);
        }
    if (optind != argc || target_size == 0 || runs[0].count == 0 || redis != (request_file == NULL))
        fail(2, "%s", usage);

    if (redis) {
        load_redis_request(key_prefix);
        check_reply = check_redis_reply;
        class_names = redis_names;
        class_count = REDIS_CLASSES;
    } else {
        load_policy_request(request_file);
    }
    for (unsigned i = 0; i < 256; i++)
        octets[i].size = (unsigned) sprintf(octets[i].text, "%u", i);
    raise_file_limit(connection_count + 16);
    epoll = epoll_create1(0);
    connections = calloc(connection_count, sizeof *connections);
    if (epoll < 0 || connections == NULL)
        fail(1, "%s", strerror(errno));
    for (unsigned i = 0; i < connection_count; i++) {
        connections[i].fd = -1;
        connections[i].run = i & 1;     /* else all would draw from the same run at the same time */
    }
    closed_count = connection_count;
    measure(warm_up, measured);
    return 0;
}
