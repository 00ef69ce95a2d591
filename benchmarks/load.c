/* load: one epoll thread that publishes to a server, and reads its event streams.
 *
 * Subscribers are opened first, each a GET of its own; then publishers send POSTs
 * over keep-alive connections, each waiting for its answer before it sends again.
 * Every message carries "@T=" and 19 digits: CLOCK_MONOTONIC in nanoseconds. At a
 * fixed rate (-r) that is the moment at which the message was *due*, so that a
 * server that stalls cannot hide it by slowing its publishers down. A delivery is
 * one such mark seen on a subscriber's connection.
 *
 *   load -p PORT [-c subscribers] [-w publishers] [-m requests] [-s seconds]
 *        [-k messages a request] [-b bytes a message] [-r requests/s]
 *        [-t topic] [-j pid of a server]... [-l seconds to wait for what is owed]
 *        [-u path -d body [-y content type]] [-n [-f in flight a publisher]]
 *
 * -u and -d send any other POST, the same each time, for servers of another kind.
 * -n speaks NATS: a PUB to the subject -t, answered in the publisher's own inbox
 * by JetStream's PubAck. Neither has marks, so neither goes with -c or -k.
 *
 * It stops sending at -m or -s, whichever comes first, and waits for the answers
 * and deliveries that are owed. -w 0 opens the subscribers and stops.
 * Prints one line of JSON. Exit status: 0 all came; 1 something is missing (the
 * line says what); 2 it could not run; 3 the server refused.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTIONS_MAX = 19000,
    OPENING_MAX = 64,       /* subscriptions asked for at one time: below any backlog */
    PATIENCE_MS = 10000,    /* without any event while subscribing */
    MARK_BYTES = 22,        /* "@T=" and the digits */
    DIGITS = 19,
    READ_BYTES = 1 << 18,
    ANSWER_BYTES_MAX = 16384,
    EVENTS = 512,
    IN_FLIGHT_MAX = 1024,    /* of one publisher */
    SERVERS_MAX = 8,
};

typedef struct {
    int fd;
    int ready;               /* a subscriber whose stream has begun */
    uint64_t got;            /* deliveries */
    int carried;             /* bytes of an unfinished mark */
    char carry[MARK_BYTES];
} subscriber;

typedef struct {
    int fd;
    int busy;                /* answers that are owed: at most in_flight */
    int oldest;              /* of them, in sent_at */
    int64_t sent_at[IN_FLIGHT_MAX];
    char *request;           /* a copy of its own: the marks differ */
    int queued;              /* times that it is still to be written */
    size_t offset;           /* of it, written */
    int length;              /* of what was read and not yet taken as an answer */
    char answer[ANSWER_BYTES_MAX + 1];
} publisher;

/* --- time, and distributions of it --- */

enum { BUCKETS = 4096, SUB = 64 }; /* 64 a power of two of microseconds: 1.6 % apart */
typedef struct { uint64_t count[BUCKETS], n; int64_t max_ns; } histogram;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void record(histogram *h, int64_t ns) {
    int64_t us = ns < 0 ? 0 : ns / 1000;
    int b = (int)us;
    if (us >= SUB) {
        int e = 63 - __builtin_clzll((uint64_t)us);
        b = SUB + (e - 6) * SUB + (int)((us >> (e - 6)) & (SUB - 1));
    }
    h->count[b < BUCKETS ? b : BUCKETS - 1]++;
    h->n++;
    if (ns > h->max_ns) h->max_ns = ns;
}

static double quantile_ms(const histogram *h, double p) {
    uint64_t seen = 0;
    for (int b = 0; b < BUCKETS; b++) {
        seen += h->count[b];
        if (h->count[b] && (double)seen >= p * (double)h->n) {
            int e = (b - SUB) / SUB + 6;
            return (b < SUB ? b : (double)((int64_t)(SUB + (b - SUB) % SUB) << (e - 6))) / 1e3;
        }
    }
    return (double)h->max_ns / 1e6;
}

/* --- the servers' figures, and our own --- */

static int servers[SERVERS_MAX], server_count; /* process ids */

static long rss_of(int server) {
    char name[64], line[256];
    long kb = 0;
    snprintf(name, sizeof name, "/proc/%d/status", server);
    FILE *f = fopen(name, "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, "VmRSS:", 6)) kb = atol(line + 6);
    fclose(f);
    return kb;
}

static long rss_kb(void) {
    long kb = 0;
    for (int i = 0; i < server_count; i++) kb += rss_of(servers[i]);
    return kb;
}

static double cpu_of(int server) {
    char name[64], text[2048];
    unsigned long user = 0, kernel = 0;
    snprintf(name, sizeof name, "/proc/%d/stat", server);
    FILE *f = fopen(name, "r");
    if (!f) return 0;
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    char *p = strrchr(text, ')'); /* the name may hold anything */
    if (!p || sscanf(p + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel) != 2)
        return 0;
    return (double)(user + kernel) / (double)sysconf(_SC_CLK_TCK);
}

static double server_cpu(void) {
    double seconds = 0;
    for (int i = 0; i < server_count; i++) seconds += cpu_of(servers[i]);
    return seconds;
}

static double own_cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void die(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(status);
}

/* --- what the options say --- */

static int port, subscribers = 0, publishers = 1, batch = 1, size = 200, nats = 0, in_flight = 1;
static long requests_max = 1000000;
static double seconds_max = 60, rate = 0, patience = 20;
static const char *topic = "bench", *path = NULL, *post = NULL, *content_type = "application/json";

/* --- the run --- */

static int ep;
static subscriber *subs;
static publisher *pubs;
static size_t request_bytes, head_bytes, line_bytes;
static long sent, answered;
static uint64_t delivered;
static int64_t first_sent, last_answer, last_delivery;
static histogram answers, deliveries;
static int closed_early;

static int dial(int number) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0) die(2, "socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) die(2, "connect %d: %s", number, strerror(errno));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void watch(int fd, uint32_t events, uint64_t key, int operation) {
    struct epoll_event event = {.events = events, .data.u64 = key};
    if (epoll_ctl(ep, operation, fd, &event)) die(2, "epoll: %s", strerror(errno));
}

static const char *find(const char *from, const char *end, const char *what, size_t length) {
    return from < end ? memmem(from, (size_t)(end - from), what, length) : NULL;
}

/* Bytes of a stream: count the marks, keep an unfinished one for the next time. */
static void count_marks(subscriber *s, const char *data, size_t length, int64_t at) {
    const char *p = data, *end = data + length, *rest = data;
    while ((p = find(p, end, "@T=", 3)) && end - p >= MARK_BYTES) {
        char digits[DIGITS + 1];
        memcpy(digits, p + 3, DIGITS);
        digits[DIGITS] = 0;
        record(&deliveries, at - strtoll(digits, NULL, 10));
        delivered++;
        s->got++;
        last_delivery = at;
        rest = p += MARK_BYTES;
    }
    if (!p) { /* the end may be the beginning of "@T=" */
        p = end - rest > 2 ? end - 2 : rest;
    }
    s->carried = (int)(end - p);
    memcpy(s->carry, p, (size_t)s->carried);
}

/* Returns 1 when the stream has just begun. */
static int read_subscriber(uint32_t number) {
    static char data[MARK_BYTES + READ_BYTES + 1];
    subscriber *s = &subs[number];
    memcpy(data, s->carry, (size_t)s->carried);
    ssize_t n = read(s->fd, data + s->carried, READ_BYTES);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) {
        if (!s->ready) die(3, "the server closed subscription %u", number);
        closed_early++;
        close(s->fd);
        return 0;
    }
    size_t length = (size_t)(s->carried + n);
    if (s->ready) {
        count_marks(s, data, length, now());
        return 0;
    }
    /* The answer's head comes in one segment with loopback and these servers, or
     * before the first event; the first event says that the stream is joined. */
    data[length] = 0;
    if (!strncmp(data, "HTTP/", 5) && strncmp(data, "HTTP/1.1 200", 12))
        die(3, "the server refused subscription %u: %.200s", number, data);
    if (!find(data, data + length, "subscribed", 10)) return 0;
    s->carried = 0;
    return s->ready = 1;
}

static void subscribe_all(void) {
    struct epoll_event events[EVENTS];
    char request[512];
    int length = snprintf(request, sizeof request,
                          "GET /v1/events?topic=%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                          "Accept: text/event-stream\r\n\r\n", topic, port);
    for (int opened = 0, ready = 0; ready < subscribers;) {
        while (opened < subscribers && opened - ready < OPENING_MAX) {
            subs[opened].fd = dial(opened);
            if (write(subs[opened].fd, request, (size_t)length) != length) die(2, "write: %s", strerror(errno));
            watch(subs[opened].fd, EPOLLIN, (uint64_t)opened, EPOLL_CTL_ADD);
            opened++;
        }
        int n = epoll_wait(ep, events, EVENTS, PATIENCE_MS);
        if (n == 0) die(3, "%d of %d subscriptions have begun, and no more do", ready, subscribers);
        for (int i = 0; i < n; i++) ready += read_subscriber((uint32_t)events[i].data.u64);
    }
}

/* A POST of our messages: a JSON object, or as many lines of them as a batch has. */
static char *build_messages(void) {
    char *body = malloc(((size_t)size + 1) * (size_t)batch), *line = body;
    int prefix = snprintf(NULL, 0, "{\"at\":\"@T=%0*d\",\"text\":\"", DIGITS, 0);
    if (prefix + 2 >= size) die(2, "-b must be at least %d", prefix + 3);
    line_bytes = (size_t)size + 1; /* with its line feed */
    for (int i = 0; i < batch; i++, line += line_bytes) {
        memset(line, 'x', (size_t)size);
        memcpy(line + size - 2, "\"}", 2);
        snprintf(line, (size_t)prefix + 1, "{\"at\":\"@T=%0*d\",\"text\":\"", DIGITS, 0);
        line[prefix] = 'x';
        line[size] = i + 1 < batch ? '\n' : 0;
    }
    return body;
}

static char *build_post(const char *where, const char *type, const char *body) {
    char head[1024];
    int length = snprintf(head, sizeof head,
                          "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                          "Content-Type: %s\r\nContent-Length: %zu\r\n\r\n",
                          where, port, type, strlen(body));
    if (length >= (int)sizeof head) die(2, "the path is too long");
    head_bytes = (size_t)length;
    request_bytes = head_bytes + strlen(body);
    char *request = malloc(request_bytes + 1);
    memcpy(request, head, head_bytes);
    memcpy(request + head_bytes, body, strlen(body) + 1);
    return request;
}

/* An inbox is of one connection, so that it gets the answers to its own publishes. */
static void name_inbox(char *name, size_t length, int index) {
    snprintf(name, length, "_INBOX.%010d.%06d", (int)getpid(), index);
}

static char *build_nats(int index) {
    char head[512], inbox[64];
    name_inbox(inbox, sizeof inbox, index);
    head_bytes = (size_t)snprintf(head, sizeof head, "PUB %s %s %d\r\n", topic, inbox, size);
    request_bytes = head_bytes + (size_t)size + 2;
    char *request = malloc(request_bytes + 1);
    memcpy(request, head, head_bytes);
    memset(request + head_bytes, 'x', (size_t)size);
    memcpy(request + head_bytes + size, "\r\n", 3);
    return request;
}

static char *build_request(int index) {
    char where[512];
    if (nats) return build_nats(index);
    if (post) return build_post(path, content_type, post);
    snprintf(where, sizeof where, "/v1/topics/%s/messages", topic);
    char *body = build_messages();
    char *request = build_post(where, batch > 1 ? "application/x-ndjson" : "application/json", body);
    free(body);
    return request;
}

/* The server speaks first; when it has answered our PING it knows our inbox. */
static void greet_nats(uint32_t index) {
    publisher *p = &pubs[index];
    char text[512], inbox[64], *pong = NULL;
    struct timeval limit = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(p->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    name_inbox(inbox, sizeof inbox, (int)index);
    int length = snprintf(text, sizeof text, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB %s 1\r\nPING\r\n", inbox);
    fcntl(p->fd, F_SETFL, 0);
    if (write(p->fd, text, (size_t)length) != length) die(2, "write: %s", strerror(errno));
    while (!pong) {
        ssize_t n = read(p->fd, p->answer + p->length, (size_t)(ANSWER_BYTES_MAX - p->length));
        if (n <= 0) die(3, "the server does not greet publisher %u: %.300s", index, p->answer);
        p->length += (int)n;
        p->answer[p->length] = 0;
        pong = strstr(p->answer, "\r\nPONG\r\n");
    }
    fcntl(p->fd, F_SETFL, O_NONBLOCK);
    p->length -= (int)(pong + 8 - p->answer);
    memmove(p->answer, pong + 8, (size_t)p->length + 1);
}

static void write_publisher(uint32_t index) {
    publisher *p = &pubs[index];
    while (p->queued) {
        ssize_t n = write(p->fd, p->request + p->offset, request_bytes - p->offset);
        if (n < 0 && errno == EAGAIN) {
            watch(p->fd, EPOLLIN | EPOLLOUT, (uint64_t)subscribers + index, EPOLL_CTL_MOD);
            return;
        }
        if (n < 0) die(3, "the server closed publisher %u: %s", index, strerror(errno));
        p->offset += (size_t)n;
        if (p->offset == request_bytes) {
            p->offset = 0;
            p->queued--;
        }
    }
}

static void mark(publisher *p, int64_t stamp) {
    char digits[DIGITS + 1];
    snprintf(digits, sizeof digits, "%0*lld", DIGITS, (long long)stamp);
    for (int i = 0; i < batch; i++) memcpy(p->request + head_bytes + (size_t)i * line_bytes + 10, digits, DIGITS);
}

static void send_publish(uint32_t index, int64_t stamp) {
    publisher *p = &pubs[index];
    int64_t at = now();
    if (line_bytes) mark(p, stamp);
    p->sent_at[(p->oldest + p->busy++) % IN_FLIGHT_MAX] = at;
    p->queued++;
    if (!sent++) first_sent = at;
    write_publisher(index);
}

/* How many bytes the answer takes at the beginning of ``text``; 0: it is not all there. */
static int take_http(const char *text, int length) {
    const char *end = strstr(text, "\r\n\r\n");
    if (!end) return 0;
    if (strncmp(text, "HTTP/1.1 200", 12) && strncmp(text, "HTTP/1.1 201", 12))
        die(3, "the server refused a publish: %.300s", text);
    const char *field = strcasestr(text, "\r\ncontent-length:");
    if (!field || field > end) die(3, "an answer without Content-Length: %.300s", text);
    int whole = (int)(end + 4 - text) + atoi(field + 17);
    return length < whole ? 0 : whole;
}

/* The same for a PubAck, with the server's pings before it, which are answered. */
static int take_nats(const char *text, int length, int fd) {
    const char *from = text;
    for (const char *end; (end = strstr(from, "\r\n")); from = end + 2) {
        if (!strncmp(from, "-ERR", 4)) die(3, "the server refused a publish: %.300s", from);
        if (!strncmp(from, "PING", 4) && write(fd, "PONG\r\n", 6) != 6) die(3, "write: %s", strerror(errno));
        int bytes;
        if (sscanf(from, "MSG %*s %*s %d", &bytes) != 1) continue;
        int whole = (int)(end + 2 - text) + bytes + 2;
        if (length < whole) return 0;
        if (!memmem(end, (size_t)bytes + 2, "\"seq\":", 6)) die(3, "the server refused a publish: %.300s", end + 2);
        return whole;
    }
    return 0;
}

/* Returns how many answers came. */
static int read_publisher(uint32_t index) {
    publisher *p = &pubs[index];
    ssize_t n = read(p->fd, p->answer + p->length, (size_t)(ANSWER_BYTES_MAX - p->length));
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) die(3, "the server closed publisher %u after %ld answers", index, answered);
    p->length += (int)n;
    p->answer[p->length] = 0;
    int came = 0, from = 0, taken;
    while ((taken = nats ? take_nats(p->answer + from, p->length - from, p->fd)
                         : take_http(p->answer + from, p->length - from))) {
        if (!p->busy) die(3, "the server answers more than was asked: %.300s", p->answer + from);
        last_answer = now();
        record(&answers, last_answer - p->sent_at[p->oldest]);
        p->oldest = (p->oldest + 1) % IN_FLIGHT_MAX;
        p->busy--;
        answered++;
        came++;
        from += taken;
    }
    p->length -= from;
    memmove(p->answer, p->answer + from, (size_t)p->length + 1);
    return came;
}

static int any_idle(void) {
    for (int i = 0; i < publishers; i++)
        if (pubs[i].busy < in_flight) return i;
    return -1;
}

static void publish_all(void) {
    struct epoll_event events[EVENTS];
    const uint64_t timer_key = (uint64_t)subscribers + (uint64_t)publishers;
    int64_t start = now(), interval = rate > 0 ? (int64_t)(1e9 / rate) : 0, heard = start;
    int timer = -1, sending = 1;
    if (interval) {
        struct itimerspec every = {.it_interval = {interval / 1000000000, interval % 1000000000}};
        every.it_value = every.it_interval;
        timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        timerfd_settime(timer, 0, &every, NULL);
        watch(timer, EPOLLIN, timer_key, EPOLL_CTL_ADD);
    } else {
        for (int i = 0; i < publishers * in_flight && sent < requests_max; i++)
            send_publish((uint32_t)(i % publishers), now());
    }
    for (;;) {
        int64_t t = now();
        if (sending && (sent >= requests_max || (double)(t - start) > seconds_max * 1e9)) {
            sending = 0;
            heard = t;
        }
        if (interval && sending) { /* what is due goes out as soon as a connection is free */
            int idle;
            while (sent < requests_max && start + interval * (sent + 1) <= t && (idle = any_idle()) >= 0)
                send_publish((uint32_t)idle, start + interval * (sent + 1));
        }
        uint64_t owed = (uint64_t)answered * (uint64_t)batch * (uint64_t)subscribers;
        if (!sending && answered == sent && delivered >= owed) break;
        if (!sending && (double)(t - heard) > patience * 1e9) break;
        int n = epoll_wait(ep, events, EVENTS, 100);
        for (int i = 0; i < n; i++) {
            uint64_t key = events[i].data.u64;
            if (key == timer_key) {
                uint64_t ticks;
                if (read(timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die(2, "timer: %s", strerror(errno));
            } else if (key >= (uint64_t)subscribers) {
                uint32_t index = (uint32_t)(key - (uint64_t)subscribers);
                if (events[i].events & EPOLLOUT) {
                    watch(pubs[index].fd, EPOLLIN, key, EPOLL_CTL_MOD);
                    write_publisher(index);
                }
                int came = events[i].events & ~(uint32_t)EPOLLOUT ? read_publisher(index) : 0;
                for (; came && !interval && sent < requests_max && (double)(now() - start) <= seconds_max * 1e9; came--)
                    send_publish(index, now());
            } else {
                read_subscriber((uint32_t)key);
            }
        }
    }
}

static void parse_options(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "p:c:w:m:s:k:b:r:t:j:l:u:d:y:nf:")) > 0) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'c': subscribers = atoi(optarg); break;
        case 'w': publishers = atoi(optarg); break;
        case 'm': requests_max = atol(optarg); break;
        case 's': seconds_max = atof(optarg); break;
        case 'k': batch = atoi(optarg); break;
        case 'b': size = atoi(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 't': topic = optarg; break;
        case 'j':
            if (server_count == SERVERS_MAX) die(2, "-j: at most %d servers", SERVERS_MAX);
            servers[server_count++] = atoi(optarg);
            break;
        case 'l': patience = atof(optarg); break;
        case 'u': path = optarg; break;
        case 'd': post = optarg; break;
        case 'y': content_type = optarg; break;
        case 'n': nats = 1; break;
        case 'f': in_flight = atoi(optarg); break;
        default: exit(2);
    }
    if (port < 1 || port > 65535) die(2, "-p must be a port");
    if (subscribers < 0 || publishers < 0 || subscribers + publishers > CONNECTIONS_MAX)
        die(2, "-c and -w: at most %d connections together", CONNECTIONS_MAX);
    if (batch < 1 || batch > 100000 || size < 40 || size > 1 << 20) die(2, "-k or -b is out of range");
    if (!path != !post) die(2, "-u and -d go together");
    if ((path || nats) && (subscribers || batch > 1 || (path && nats))) die(2, "-u and -n go alone, without -c and -k");
    if (in_flight < 1 || in_flight > IN_FLIGHT_MAX || (in_flight > 1 && !nats))
        die(2, "-f must be 1 to %d, and goes with -n", IN_FLIGHT_MAX);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    ep = epoll_create1(0);
    subs = calloc((size_t)subscribers + 1, sizeof *subs);
    pubs = calloc((size_t)publishers + 1, sizeof *pubs);

    long rss_before = rss_kb();
    int64_t start = now();
    subscribe_all();
    double subscribing = (double)(now() - start) / 1e9;
    usleep(20000 + 300 * (useconds_t)subscribers); /* let it come to rest */
    long rss_after = rss_kb();

    double cpu_before = server_cpu(), own_before = own_cpu();
    start = now();
    if (publishers) {
        for (int i = 0; i < publishers; i++) {
            pubs[i].request = build_request(i);
            pubs[i].fd = dial(i);
            if (nats) greet_nats((uint32_t)i);
            watch(pubs[i].fd, EPOLLIN, (uint64_t)(subscribers + i), EPOLL_CTL_ADD);
        }
        publish_all();
    }
    double elapsed = (double)(now() - start) / 1e9;
    double answering = (double)(last_answer - first_sent) / 1e9;
    double delivering = (double)(last_delivery - first_sent) / 1e9;
    uint64_t expected = (uint64_t)answered * (uint64_t)batch * (uint64_t)subscribers;
    int uneven = 0;
    for (int i = 0; i < subscribers; i++) uneven += subs[i].got != (uint64_t)answered * (uint64_t)batch;

    printf("{\"requests\":%ld,\"answered\":%ld,\"messages\":%ld,\"answers_per_s\":%.1f,\"messages_per_s\":%.1f,"
           "\"answer_p50_ms\":%.3f,\"answer_p99_ms\":%.3f,"
           "\"deliveries\":%llu,\"expected\":%llu,\"uneven\":%d,\"closed\":%d,\"deliveries_per_s\":%.1f,"
           "\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,"
           "\"subscribe_seconds\":%.4f,\"rss_before_kb\":%ld,\"rss_after_kb\":%ld,"
           "\"server_cpu_s\":%.2f,\"load_cpu_s\":%.3f,\"elapsed_s\":%.3f}\n",
           sent, answered, answered * batch,
           answering > 0 ? (double)answered / answering : 0, answering > 0 ? (double)(answered * batch) / answering : 0,
           quantile_ms(&answers, .5), quantile_ms(&answers, .99),
           (unsigned long long)delivered, (unsigned long long)expected, uneven, closed_early,
           delivering > 0 ? (double)delivered / delivering : 0,
           quantile_ms(&deliveries, .5), quantile_ms(&deliveries, .99), (double)deliveries.max_ns / 1e6,
           subscribing, rss_before, rss_after, server_cpu() - cpu_before, own_cpu() - own_before, elapsed);
    return answered == sent && !uneven && !closed_early ? 0 : 1;
}
