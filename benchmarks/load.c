/* load: one epoll thread that publishes to a server, and reads what its subscribers get.
 *
 * Subscribers are opened first, each on a connection of its own; then publishers
 * send over connections of theirs, each waiting for its answer before it sends
 * again. Every message carries a mark: "@T=.", 19 digits (CLOCK_MONOTONIC in
 * nanoseconds), which publisher sent it, and which of that publisher's it is:
 *
 *   @T=.0000012345678901234.0007.000000042
 *
 * At a fixed rate (-r) the time is the moment at which the message was *due*, so
 * that a server that stalls cannot hide it by slowing its publishers down. A
 * delivery is one mark on a subscriber's connection. It must be the next of its
 * publisher on that connection, so that a message that is lost, comes twice or
 * comes out of order is found; and in the end each subscriber must have as many
 * as were published. Of our own servers the ids must count up by one, as well.
 *
 *   load -p PORT [-P protocol] [-c subscribers] [-w publishers] [-m requests] [-s seconds]
 *        [-k messages a request] [-b bytes a message] [-r requests/s]
 *        [-t topic] [-j pid of a server]... [-l seconds to wait for what is owed]
 *        [-z subscribers that stall] [-f in flight a publisher] [-e]
 *        [-u path -d body [-y content type]]
 *
 * Protocols (-P): ours; bare, the same without ids; nchan, EventSource and POST;
 * redis, SUBSCRIBE and PUBLISH; nats, SUB, and PUB confirmed by a PONG; jetstream,
 * PUB answered by a PubAck, without subscribers and marks. -u and -d send any
 * other POST, the same each time, without subscribers and marks. -k is for ours
 * and bare, -f for jetstream.
 *
 * A publisher sends again when it is answered. With -e it also waits until every
 * subscriber has the message, so that a server that answers first cannot join
 * messages into one write; there is one publisher then.
 *
 * It stops sending at -m or -s, whichever comes first, and waits for the answers
 * and deliveries that are owed. -w 0 opens the subscribers and stops. The -z last
 * subscribers have small buffers, read nothing from when all have subscribed until
 * the others have everything, and then must get everything, too.
 *
 * Prints one line of JSON. Exit status: 0 all came; 1 something is missing or
 * misplaced (stderr says what); 2 it could not run; 3 the server refused.
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
    PUBLISHERS_MAX = 1024,
    ADDRESS_CONNECTIONS = 8000,
    OPENING_MAX = 64,       /* subscriptions asked for at one time: below any backlog */
    PATIENCE_MS = 10000,    /* without any event while subscribing */
    STAMP = 4, STAMP_DIGITS = 19,   /* where the parts of a mark stand, and how long they are */
    SENDER = 24, SENDER_DIGITS = 4,
    NUMBER = 29, NUMBER_DIGITS = 9,
    MARK_BYTES = 38,
    BEFORE_MARK = 7,        /* {"at":" */
    CARRY_BYTES = 512,      /* of what was read last: an id, and a mark that is not whole */
    READ_BYTES = 1 << 18,
    ANSWER_BYTES_MAX = 16384,
    EVENTS = 512,
    IN_FLIGHT_MAX = 1024,   /* of one publisher */
    SERVERS_MAX = 16,
    STALLED_BUFFER_BYTES = 4096,
    ETHERNET_BYTES = 1448,  /* of a segment: with loopback's 64 KB a server's buffer takes megabytes */
    SAMPLE_NS = 100000000,  /* how often the servers' memory is looked at */
};

typedef struct {
    int fd;
    int ready;               /* a subscriber whose stream has begun */
    uint64_t got;            /* deliveries */
    uint64_t id;             /* the last one's, if the protocol has ids */
    int carried;             /* bytes in carry */
    char carry[CARRY_BYTES];
} subscriber;

typedef struct {
    int fd;
    int busy;                /* answers that are owed: at most in_flight */
    int oldest;              /* of them, in sent_at */
    int64_t sent_at[IN_FLIGHT_MAX];
    long numbered;           /* messages that it has marked */
    char *request;           /* a copy of its own: the marks differ */
    int queued;              /* times that it is still to be written */
    size_t offset;           /* of it, written */
    int length;              /* of what was read and not yet taken as an answer */
    char answer[ANSWER_BYTES_MAX + 1];
} publisher;

/* What a kind of server is spoken to with. */
typedef struct {
    const char *name;
    const char *begun;                        /* says that a subscription has begun */
    const char *refused;                      /* is in an answer that is an error; may be NULL */
    int (*subscribe)(char *text, size_t room);
    void (*publish)(publisher *p, int index); /* make its request */
    int (*take)(const char *text, int length, int fd); /* bytes of one answer; 0: not whole */
    int (*greet)(char *text, size_t room, int index);  /* before the first publish; may be NULL */
    int has_ids;
} protocol;

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

static int port, subscribers = 0, stalled = 0, publishers = 1, batch = 1, size = 200, in_flight = 1, in_step = 0;
static long requests_max = 1000000;
static double seconds_max = 60, rate = 0, patience = 20;
static const char *topic = "bench", *path = NULL, *post = NULL, *content_type = "application/json";
static const protocol *speak;

/* --- the run --- */

static int ep;
static subscriber *subs;
static publisher *pubs;
static uint32_t *expected; /* of each subscriber, each publisher's next number */
static size_t request_bytes, head_bytes, line_bytes, id_distance;
static long sent, answered;
static uint64_t delivered, misplaced, reads; /* that brought deliveries */
static char first_misplaced[200];
static int64_t first_sent, last_answer, last_delivery;
static histogram answers, deliveries;
static int closed_early, is_catching_up;
static long rss_max_kb;

/* Each of loopback's addresses gives so many connections, so that the kernel need not search long
 * for a free port. A reader that will stall is like one behind a slow line: it has small buffers
 * and segments. */
static int dial(int number, int will_stall) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1, room = STALLED_BUFFER_BYTES, segment = ETHERNET_BYTES;
    if (fd < 0) die(2, "socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (will_stall) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    }
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + (uint32_t)(number / ADDRESS_CONNECTIONS));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&from, sizeof from)) die(2, "bind: %s", strerror(errno));
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) die(2, "connect %d: %s", number, strerror(errno));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void watch(int fd, uint32_t events, uint64_t key, int operation) {
    struct epoll_event event = {.events = events, .data.u64 = key};
    if (epoll_ctl(ep, operation, fd, &event)) die(2, "epoll: %s", strerror(errno));
}

static int stalls(int number) {
    return number >= subscribers - stalled;
}

/* --- subscribers --- */

static int64_t read_digits(const char *text, int digits) {
    int64_t value = 0;
    while (digits--) value = value * 10 + (*text++ - '0');
    return value;
}

static void complain(int number, const char *what, int64_t is, int64_t wanted) {
    if (!misplaced++)
        snprintf(first_misplaced, sizeof first_misplaced, "subscriber %d got %s %lld where %lld was due",
                 number, what, (long long)is, (long long)wanted);
}

/* In what ours sends, the id stands before the mark: "id":"9f3a1c2b-5000","topic":… */
static void check_id(subscriber *s, const char *mark, const char *begin) {
    const char *end = mark - id_distance, *p = end;
    while (p > begin && p[-1] >= '0' && p[-1] <= '9') p--;
    int64_t id = p > begin && p < end && p[-1] == '-' ? read_digits(p, (int)(end - p)) : -1;
    if (id < 0 || (s->id && (uint64_t)id != s->id + 1)) complain((int)(s - subs), "id", id, (int64_t)s->id + 1);
    s->id = (uint64_t)id;
}

static void deliver(subscriber *s, const char *mark, const char *begin, int64_t at) {
    int64_t sender = read_digits(mark + SENDER, SENDER_DIGITS), number = read_digits(mark + NUMBER, NUMBER_DIGITS);
    if (sender < 0 || sender >= publishers) {
        complain((int)(s - subs), "a message of publisher", sender, publishers - 1);
    } else {
        uint32_t *next = &expected[(size_t)(s - subs) * (size_t)publishers + (size_t)sender];
        if (number != *next) complain((int)(s - subs), "message", number, *next);
        *next = (uint32_t)number + 1;
    }
    if (speak->has_ids) check_id(s, mark, begin);
    s->got++;
    if (is_catching_up) return; /* what is late on purpose does not count */
    record(&deliveries, at - read_digits(mark + STAMP, STAMP_DIGITS));
    delivered++;
    last_delivery = at;
}

/* Bytes of a stream: take the marks, and carry the end over to the next time. */
static void take_marks(subscriber *s, const char *data, size_t length, int64_t at) {
    const char *p = data, *end = data + length, *rest = data;
    uint64_t before = delivered;
    while ((p = memchr(p, '@', (size_t)(end - p))) && end - p >= MARK_BYTES) {
        if (memcmp(p, "@T=.", 4)) {
            p++;
            continue;
        }
        deliver(s, p, data, at);
        rest = p += MARK_BYTES;
    }
    reads += delivered > before;
    s->carried = (int)(end - rest < CARRY_BYTES ? end - rest : CARRY_BYTES);
    memcpy(s->carry, end - s->carried, (size_t)s->carried);
}

/* Returns 1 when the stream has just begun. */
static int read_subscriber(uint32_t number) {
    static char data[CARRY_BYTES + READ_BYTES + 1];
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
        take_marks(s, data, length, now());
        return 0;
    }
    data[length] = 0;
    if ((!strncmp(data, "HTTP/", 5) && strncmp(data, "HTTP/1.1 200", 12)) ||
        (speak->refused && strstr(data, speak->refused)))
        die(3, "the server refused subscription %u: %.200s", number, data);
    s->ready = strstr(data, speak->begun) != NULL;
    s->carried = s->ready ? 0 : (int)(length < CARRY_BYTES ? length : CARRY_BYTES);
    memcpy(s->carry, data + length - (size_t)s->carried, (size_t)s->carried);
    return s->ready;
}

static void subscribe_all(void) {
    struct epoll_event events[EVENTS];
    char request[512];
    int length = subscribers ? speak->subscribe(request, sizeof request) : 0;
    for (int opened = 0, ready = 0; ready < subscribers;) {
        while (opened < subscribers && opened - ready < OPENING_MAX) {
            subs[opened].fd = dial(opened, stalls(opened));
            if (write(subs[opened].fd, request, (size_t)length) != length) die(2, "write: %s", strerror(errno));
            watch(subs[opened].fd, EPOLLIN, (uint64_t)opened, EPOLL_CTL_ADD);
            opened++;
        }
        int n = epoll_wait(ep, events, EVENTS, PATIENCE_MS);
        if (n == 0) die(3, "%d of %d subscriptions have begun, and no more do", ready, subscribers);
        for (int i = 0; i < n; i++) ready += read_subscriber((uint32_t)events[i].data.u64);
    }
}

/* --- what is sent --- */

/* A JSON object, or as many lines of them as a batch has: {"at":"@T=.…xxx"} */
static char *make_body(void) {
    char *body = malloc(((size_t)size + 1) * (size_t)batch), *line = body;
    line_bytes = (size_t)size + 1; /* with its line feed */
    for (int i = 0; i < batch; i++, line += line_bytes) {
        memset(line, 'x', (size_t)size);
        memcpy(line, "{\"at\":\"@T=.", BEFORE_MARK + 4);
        line[BEFORE_MARK + SENDER - 1] = line[BEFORE_MARK + NUMBER - 1] = '.';
        memcpy(line + size - 2, "\"}", 2);
        line[size] = i + 1 < batch ? '\n' : 0;
    }
    return body;
}

static void make_request(publisher *p, const char *head, const char *body, const char *tail) {
    head_bytes = strlen(head);
    request_bytes = head_bytes + strlen(body) + strlen(tail);
    p->request = malloc(request_bytes + 1);
    strcpy(stpcpy(stpcpy(p->request, head), body), tail);
}

static void make_post(publisher *p, const char *where, const char *type, const char *body) {
    char head[1024];
    int length = snprintf(head, sizeof head,
                          "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                          "Content-Type: %s\r\nContent-Length: %zu\r\n\r\n",
                          where, port, type, strlen(body));
    if (length >= (int)sizeof head) die(2, "the path is too long");
    make_request(p, head, body, "");
}

/* Digits into each message's mark: the time, who sends it, and how many went before. */
static void mark(publisher *p, int index, int64_t stamp) {
    char same[64], digits[16];
    snprintf(same, sizeof same, "%0*lld.%0*d", STAMP_DIGITS, (long long)stamp, SENDER_DIGITS, index);
    for (int i = 0; i < batch; i++) {
        char *at = p->request + head_bytes + (size_t)i * line_bytes + BEFORE_MARK;
        memcpy(at + STAMP, same, NUMBER - STAMP - 1);
        snprintf(digits, sizeof digits, "%0*ld", NUMBER_DIGITS, p->numbered++);
        memcpy(at + NUMBER, digits, NUMBER_DIGITS);
    }
}

/* --- HTTP: ours, Nchan, any POST --- */

static int get(char *text, size_t room, const char *prefix) {
    return snprintf(text, room, "GET %s%s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n\r\n",
                    prefix, topic, port);
}

static int subscribe_ours(char *text, size_t room) {
    return get(text, room, "/v1/events?topic=");
}

static int subscribe_nchan(char *text, size_t room) {
    return get(text, room, "/sub/");
}

static void publish_ours(publisher *p, int index) {
    char where[512], *body = make_body();
    (void)index;
    snprintf(where, sizeof where, "/v1/topics/%s/messages", topic);
    make_post(p, where, batch > 1 ? "application/x-ndjson" : "application/json", body);
    free(body);
}

static void publish_nchan(publisher *p, int index) {
    char where[512], *body = make_body();
    (void)index;
    snprintf(where, sizeof where, "/pub/%s", topic);
    make_post(p, where, "application/json", body);
    free(body);
}

static void publish_post(publisher *p, int index) {
    (void)index;
    make_post(p, path, content_type, post);
}

static int take_http(const char *text, int length, int fd) {
    (void)fd;
    const char *end = strstr(text, "\r\n\r\n");
    if (!end) return 0;
    if (strncmp(text, "HTTP/1.1 200", 12) && strncmp(text, "HTTP/1.1 201", 12) && strncmp(text, "HTTP/1.1 202", 12))
        die(3, "the server refused a publish: %.300s", text);
    const char *field = strcasestr(text, "\r\ncontent-length:");
    if (!field || field > end) die(3, "an answer without Content-Length: %.300s", text);
    int whole = (int)(end + 4 - text) + atoi(field + 17);
    return length < whole ? 0 : whole;
}

/* --- Redis --- */

static int subscribe_redis(char *text, size_t room) {
    return snprintf(text, room, "*2\r\n$9\r\nSUBSCRIBE\r\n$%zu\r\n%s\r\n", strlen(topic), topic);
}

static void publish_redis(publisher *p, int index) {
    char head[512], *body = make_body();
    (void)index;
    snprintf(head, sizeof head, "*3\r\n$7\r\nPUBLISH\r\n$%zu\r\n%s\r\n$%d\r\n", strlen(topic), topic, size);
    make_request(p, head, body, "\r\n");
    free(body);
}

/* How many got it, as an integer. */
static int take_redis(const char *text, int length, int fd) {
    (void)length;
    (void)fd;
    const char *end = strstr(text, "\r\n");
    if (!end) return 0;
    if (*text != ':') die(3, "the server refused a publish: %.300s", text);
    return (int)(end + 2 - text);
}

/* --- NATS. It asks subscribers for a PONG, too, but not often enough to miss it in a run. --- */

static int subscribe_nats(char *text, size_t room) {
    return snprintf(text, room, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB %s 1\r\nPING\r\n", topic);
}

static void publish_nats(publisher *p, int index) {
    char head[512], *body = make_body();
    (void)index;
    snprintf(head, sizeof head, "PUB %s %d\r\n", topic, size);
    make_request(p, head, body, "\r\nPING\r\n");
    free(body);
}

static void answer_ping(const char *line, int fd) {
    if (!strncmp(line, "-ERR", 4)) die(3, "the server refused a publish: %.300s", line);
    if (!strncmp(line, "PING", 4) && write(fd, "PONG\r\n", 6) != 6) die(3, "write: %s", strerror(errno));
}

static int take_nats(const char *text, int length, int fd) {
    (void)length;
    for (const char *from = text, *end; (end = strstr(from, "\r\n")); from = end + 2) {
        if (!strncmp(from, "PONG", 4)) return (int)(end + 2 - text);
        answer_ping(from, fd);
    }
    return 0;
}

static int greet_nats(char *text, size_t room, int index) {
    (void)index;
    return snprintf(text, room, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n");
}

/* An inbox is of one connection, so that it gets the answers to its own publishes. */
static void name_inbox(char *name, size_t room, int index) {
    snprintf(name, room, "_INBOX.%010d.%06d", (int)getpid(), index);
}

static void publish_jetstream(publisher *p, int index) {
    char head[512], inbox[64], *body = make_body();
    name_inbox(inbox, sizeof inbox, index);
    snprintf(head, sizeof head, "PUB %s %s %d\r\n", topic, inbox, size);
    make_request(p, head, body, "\r\n");
    free(body);
}

/* A PubAck, with the server's pings before it. */
static int take_jetstream(const char *text, int length, int fd) {
    for (const char *from = text, *end; (end = strstr(from, "\r\n")); from = end + 2) {
        answer_ping(from, fd);
        int bytes;
        if (sscanf(from, "MSG %*s %*s %d", &bytes) != 1) continue;
        int whole = (int)(end + 2 - text) + bytes + 2;
        if (length < whole) return 0;
        if (!memmem(end, (size_t)bytes + 2, "\"seq\":", 6)) die(3, "the server refused a publish: %.300s", end + 2);
        return whole;
    }
    return 0;
}

static int greet_jetstream(char *text, size_t room, int index) {
    char inbox[64];
    name_inbox(inbox, sizeof inbox, index);
    return snprintf(text, room, "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB %s 1\r\nPING\r\n", inbox);
}

static const protocol protocols[] = {
    {"ours", "subscribed", NULL, subscribe_ours, publish_ours, take_http, NULL, 1},
    {"bare", "subscribed", NULL, subscribe_ours, publish_ours, take_http, NULL, 0},
    {"nchan", "\r\n\r\n", NULL, subscribe_nchan, publish_nchan, take_http, NULL, 0},
    {"redis", "\r\n:1\r\n", "-ERR", subscribe_redis, publish_redis, take_redis, NULL, 0},
    {"nats", "PONG\r\n", "-ERR", subscribe_nats, publish_nats, take_nats, greet_nats, 0},
    {"jetstream", "", NULL, NULL, publish_jetstream, take_jetstream, greet_jetstream, 0},
    {"post", "", NULL, NULL, publish_post, take_http, NULL, 0},
    {NULL},
};

static const protocol *protocol_named(const char *name) {
    const protocol *p = protocols;
    while (p->name && strcmp(p->name, name)) p++;
    if (!p->name) die(2, "-P: there is no protocol %s", name);
    return p;
}

/* --- publishers --- */

/* The server speaks first; when it has answered our PING it has taken in what came before. */
static void greet(int index) {
    publisher *p = &pubs[index];
    char text[512], *pong = NULL;
    struct timeval limit = {.tv_sec = PATIENCE_MS / 1000};
    setsockopt(p->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    int length = speak->greet(text, sizeof text, index);
    fcntl(p->fd, F_SETFL, 0);
    if (write(p->fd, text, (size_t)length) != length) die(2, "write: %s", strerror(errno));
    while (!pong) {
        ssize_t n = read(p->fd, p->answer + p->length, (size_t)(ANSWER_BYTES_MAX - p->length));
        if (n <= 0) die(3, "the server does not greet publisher %d: %.300s", index, p->answer);
        p->length += (int)n;
        p->answer[p->length] = 0;
        pong = strstr(p->answer, "\r\nPONG\r\n");
    }
    fcntl(p->fd, F_SETFL, O_NONBLOCK);
    p->length -= (int)(pong + 8 - p->answer);
    memmove(p->answer, pong + 8, (size_t)p->length + 1);
}

static void open_publishers(void) {
    for (int i = 0; i < publishers; i++) {
        speak->publish(&pubs[i], i);
        pubs[i].fd = dial(i, 0);
        if (speak->greet) greet(i);
        watch(pubs[i].fd, EPOLLIN, (uint64_t)(subscribers + i), EPOLL_CTL_ADD);
    }
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

static void send_publish(uint32_t index, int64_t stamp) {
    publisher *p = &pubs[index];
    int64_t at = now();
    if (line_bytes) mark(p, (int)index, stamp);
    p->sent_at[(p->oldest + p->busy++) % IN_FLIGHT_MAX] = at;
    p->queued++;
    if (!sent++) first_sent = at;
    write_publisher(index);
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
    while ((taken = speak->take(p->answer + from, p->length - from, p->fd))) {
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

/* In turn, so that no server takes a connection for one that is not used; -1: none is idle. */
static int next_idle(void) {
    static int turn = 0;
    for (int i = 0; i < publishers; i++) {
        turn = (turn + 1) % publishers;
        if (pubs[turn].busy < in_flight) return turn;
    }
    return -1;
}

static uint64_t messages(void) {
    return (uint64_t)answered * (uint64_t)batch;
}

/* Deliveries, once all answers are there. */
static uint64_t owed(void) {
    return messages() * (uint64_t)(subscribers - stalled);
}

static void sample_rss(int64_t at) {
    static int64_t next = 0;
    if (at < next) return;
    long kb = rss_kb();
    if (kb > rss_max_kb) rss_max_kb = kb;
    next = at + SAMPLE_NS;
}

static void start_timer(int64_t interval, uint64_t key, int *timer) {
    struct itimerspec every = {.it_interval = {interval / 1000000000, interval % 1000000000}};
    every.it_value = every.it_interval;
    *timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    timerfd_settime(*timer, 0, &every, NULL);
    watch(*timer, EPOLLIN, key, EPOLL_CTL_ADD);
}

static int may_send(int64_t start) {
    return sent < requests_max && (double)(now() - start) <= seconds_max * 1e9;
}

static void publish_all(void) {
    struct epoll_event events[EVENTS];
    const uint64_t timer_key = (uint64_t)subscribers + (uint64_t)publishers;
    int64_t start = now(), interval = rate > 0 ? (int64_t)(1e9 / rate) : 0, heard = start;
    int timer = -1, sending = 1;
    if (interval) {
        start_timer(interval, timer_key, &timer);
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
            while (sent < requests_max && start + interval * (sent + 1) <= t && (idle = next_idle()) >= 0)
                send_publish((uint32_t)idle, start + interval * (sent + 1));
        }
        sample_rss(t);
        if (!sending && answered == sent && delivered >= owed()) break;
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
                for (; came && !interval && !in_step && may_send(start); came--) send_publish(index, now());
            } else {
                read_subscriber((uint32_t)key);
            }
        }
        if (in_step && sending && answered == sent && delivered >= owed() && may_send(start)) send_publish(0, now());
    }
}

/* --- stalled subscribers --- */

/* What the kernel holds of all connections with the server's port: sent and not taken, or not read. */
static long kernel_bytes(void) {
    FILE *f = fopen("/proc/net/tcp", "r");
    char line[512];
    unsigned from, to, unsent, unread;
    long bytes = 0;
    if (!f) return 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, " %*d: %*x:%x %*x:%x %*x %x:%x", &from, &to, &unsent, &unread) == 4) {
            if ((int)from == port) bytes += unsent;
            if ((int)to == port) bytes += unread;
        }
    fclose(f);
    return bytes;
}

static void stall(void) {
    for (int i = subscribers - stalled; i < subscribers; i++) watch(subs[i].fd, 0, (uint64_t)i, EPOLL_CTL_DEL);
}

static int lacking(void) {
    int count = 0;
    for (int i = subscribers - stalled; i < subscribers; i++) count += subs[i].got < messages();
    return count;
}

/* Read on, until they have everything. */
static void catch_up(void) {
    struct epoll_event events[EVENTS];
    int64_t start = now(), t = start;
    int room = 1 << 20;
    is_catching_up = 1;
    for (int i = subscribers - stalled; i < subscribers; i++) {
        setsockopt(subs[i].fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
        watch(subs[i].fd, EPOLLIN, (uint64_t)i, EPOLL_CTL_ADD);
    }
    while (lacking() && (double)(t - start) < patience * 1e9) {
        int n = epoll_wait(ep, events, EVENTS, 100);
        for (int i = 0; i < n; i++)
            if (events[i].data.u64 < (uint64_t)subscribers) read_subscriber((uint32_t)events[i].data.u64);
        sample_rss(t = now());
    }
}

/* --- all of it --- */

static void parse_options(int argc, char **argv) {
    const char *name = "ours";
    int option;
    while ((option = getopt(argc, argv, "p:P:c:z:w:m:s:k:b:r:t:j:l:u:d:y:f:e")) > 0) switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'P': name = optarg; break;
        case 'c': subscribers = atoi(optarg); break;
        case 'z': stalled = atoi(optarg); break;
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
        case 'f': in_flight = atoi(optarg); break;
        case 'e': in_step = 1; break;
        default: exit(2);
    }
    if (!path != !post) die(2, "-u and -d go together");
    speak = protocol_named(post ? "post" : name);
    if (port < 1 || port > 65535) die(2, "-p must be a port");
    if (subscribers < 0 || publishers < 0 || publishers > PUBLISHERS_MAX || subscribers + publishers > CONNECTIONS_MAX)
        die(2, "-c and -w: at most %d connections together, %d of publishers", CONNECTIONS_MAX, PUBLISHERS_MAX);
    if (stalled < 0 || stalled > subscribers) die(2, "-z: 0 to as many as there are subscribers");
    if (batch < 1 || batch > 100000 || size < BEFORE_MARK + MARK_BYTES + 2 || size > 1 << 20)
        die(2, "-k or -b is out of range; a message has at least %d bytes", BEFORE_MARK + MARK_BYTES + 2);
    if (strlen(topic) > 128) die(2, "-t is too long");
    if (batch > 1 && speak->publish != publish_ours) die(2, "-k goes with ours and bare");
    if (subscribers && !speak->subscribe) die(2, "-c does not go with %s", speak->name);
    if (in_flight < 1 || in_flight > IN_FLIGHT_MAX || (in_flight > 1 && speak->publish != publish_jetstream))
        die(2, "-f must be 1 to %d, and goes with jetstream", IN_FLIGHT_MAX);
    if (in_step && (publishers != 1 || rate > 0)) die(2, "-e goes with one publisher, and not with -r");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
}

static int count_uneven(void) {
    int uneven = 0;
    for (int i = 0; i < subscribers; i++) uneven += subs[i].got != messages();
    return uneven;
}

/* Returns the exit status. */
static int judge(int uneven) {
    if (answered != sent) fprintf(stderr, "load: %ld of %ld publishes were not answered\n", sent - answered, sent);
    if (misplaced)
        fprintf(stderr, "load: %llu messages were not the next ones: %s\n", (unsigned long long)misplaced, first_misplaced);
    if (closed_early) fprintf(stderr, "load: the server ended %d subscriptions\n", closed_early);
    if (uneven) fprintf(stderr, "load: %d of %d subscribers do not have as many messages as were published\n", uneven, subscribers);
    return answered != sent || misplaced || closed_early || uneven;
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    ep = epoll_create1(0);
    subs = calloc((size_t)subscribers + 1, sizeof *subs);
    pubs = calloc((size_t)publishers + 1, sizeof *pubs);
    expected = calloc((size_t)subscribers * (size_t)publishers + 1, sizeof *expected);
    id_distance = strlen("\",\"topic\":\"") + strlen(topic) +
                  strlen("\",\"time\":\"2026-01-01T00:00:00.000Z\",\"data\":") + BEFORE_MARK;

    long rss_before = rss_kb();
    int64_t start = now();
    subscribe_all();
    double subscribing = (double)(now() - start) / 1e9;
    usleep(20000 + 50 * (useconds_t)subscribers); /* let it come to rest */
    long rss_after = rss_kb(), held = 0;

    double cpu_before = server_cpu(), own_before = own_cpu();
    stall();
    start = now();
    if (publishers) {
        open_publishers();
        publish_all();
    }
    double elapsed = (double)(now() - start) / 1e9, server_seconds = server_cpu() - cpu_before;
    double own_seconds = own_cpu() - own_before, catching_up = 0;
    if (stalled) {
        held = kernel_bytes();
        start = now();
        catch_up();
        catching_up = (double)(now() - start) / 1e9;
    }
    double answering = (double)(last_answer - first_sent) / 1e9;
    double delivering = (double)(last_delivery - first_sent) / 1e9;
    int uneven = count_uneven();

    printf("{\"requests\":%ld,\"answered\":%ld,\"messages\":%llu,\"answers_per_s\":%.1f,\"messages_per_s\":%.1f,"
           "\"answer_p50_ms\":%.3f,\"answer_p99_ms\":%.3f,"
           "\"deliveries\":%llu,\"uneven\":%d,\"misplaced\":%llu,\"closed\":%d,\"reads\":%llu,\"deliveries_per_s\":%.1f,"
           "\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,"
           "\"subscribe_seconds\":%.4f,\"rss_before_kb\":%ld,\"rss_after_kb\":%ld,\"rss_max_kb\":%ld,"
           "\"kernel_bytes\":%ld,\"catch_up_s\":%.3f,"
           "\"server_cpu_s\":%.2f,\"load_cpu_s\":%.3f,\"elapsed_s\":%.3f}\n",
           sent, answered, (unsigned long long)messages(),
           answering > 0 ? (double)answered / answering : 0, answering > 0 ? (double)messages() / answering : 0,
           quantile_ms(&answers, .5), quantile_ms(&answers, .99),
           (unsigned long long)delivered, uneven, (unsigned long long)misplaced, closed_early, (unsigned long long)reads,
           delivering > 0 ? (double)delivered / delivering : 0,
           quantile_ms(&deliveries, .5), quantile_ms(&deliveries, .99), (double)deliveries.max_ns / 1e6,
           subscribing, rss_before, rss_after, rss_max_kb, held, catching_up,
           server_seconds, own_seconds, elapsed);
    return judge(uneven);
}
