/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The reference for the load generator: the same storm in C, with nothing but what it
 * takes. One process, one thread, one epoll instance for each shard; a request of so many
 * bytes, the same bytes back, and the client closes.
 *
 *   cref server ADDRESS PORT [options]           until it gets SIGTERM
 *   cref client ADDRESS PORT [options]           the storm; a line a loop
 *   cref both   ADDRESS PORT [options]           both ends in one loop, a process a CPU
 *
 * Options: -l LOOPS (10) -n CONNECTIONS (10000) -c CONCURRENCY (= connections)
 * -b BYTES (100) -g (SO_LINGER {1,0}) -s SHARDS (1) -q BACKLOG (4096).
 *
 * A line: loop, finished, failed, seconds. What failed is said at the end, by errno.
 * One shard is the process itself; more are its children.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BURST	     8	/* connects between two looks at epoll */
#define ACCEPT_BURST 64 /* accepts, likewise */
#define EVENTS	     256
#define MAX_SHARDS   64
#define MAX_LOOPS    1000
#define ERRNOS	     134

static int loops = 10, connections = 10000, concurrency, bytes = 100, shards = 1, backlog = 4096;
static bool linger;
static struct sockaddr_in target;
static char *request, *scratch;

enum state {
	FREE,
	CONNECTING,
	SENDING,
	RECEIVING,
	SERVING
};

struct conn {
	int sent, got;
	enum state state;
};

/* Of one shard; shared with the parent, which sums them up. */
struct result {
	int finished[MAX_LOOPS], failed[MAX_LOOPS];
	uint64_t begun[MAX_LOOPS], ended[MAX_LOOPS];
	int errors[ERRNOS];
};

struct shard {
	int epfd, listener;
	struct conn *conns;
	int limit;
	struct result *result;
	int loop, to_open, open;
	bool for_ever; /* a server: there is always something to wait for */
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void watch(struct shard *s, int fd, uint32_t events)
{
	struct epoll_event ev = {.events = events | EPOLLET, .data.fd = fd};

	if (epoll_ctl(s->epfd, EPOLL_CTL_ADD, fd, &ev))
		die("epoll_ctl");
}

/* Client. */

static void end(struct shard *s, int fd, int error)
{
	struct result *r = s->result;

	close(fd);
	s->conns[fd].state = FREE;
	s->open--;
	if (error) {
		r->failed[s->loop]++;
		r->errors[error < ERRNOS ? error : 0]++;
	} else {
		r->finished[s->loop]++;
	}
}

/* Receives what is left, at either end. False: not all of it is there yet. An end of the stream
   that comes early is EPROTO. */
static bool received(struct conn *c, int fd, int *error)
{
	*error = 0;
	while (c->got < bytes) {
		ssize_t n = recv(fd, scratch, bytes - c->got, 0);

		if (n < 0 && errno == EAGAIN)
			return false;
		if (n <= 0) {
			*error = n < 0 ? errno : EPROTO;
			return true;
		}
		c->got += n;
	}
	return true;
}

/* Sends what is left of the request; the kernel says EAGAIN until it is connected. */
static bool send_some(struct shard *s, int fd)
{
	struct conn *c = &s->conns[fd];
	ssize_t n = send(fd, request + c->sent, bytes - c->sent, MSG_NOSIGNAL);

	if (n < 0) {
		if (errno == EAGAIN || errno == ENOTCONN)
			return true;
		end(s, fd, errno);
		return false;
	}
	c->sent += n;
	c->state = c->sent == bytes ? RECEIVING : SENDING;
	return true;
}

static void receive(struct shard *s, int fd)
{
	int error;

	if (received(&s->conns[fd], fd, &error))
		end(s, fd, error);
}

static void open_one(struct shard *s)
{
	static const struct linger reset = {.l_onoff = 1};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
	uint32_t events = EPOLLIN | EPOLLRDHUP;

	if (fd < 0 || fd >= s->limit)
		die("socket");
	s->to_open--;
	s->open++;
	s->conns[fd] = (struct conn){.state = CONNECTING};
	if (linger)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	if (connect(fd, (struct sockaddr *)&target, sizeof(target)) && errno != EINPROGRESS) {
		end(s, fd, errno);
		return;
	}
	if (!send_some(s, fd))
		return;
	if (s->conns[fd].state != RECEIVING)
		events |= EPOLLOUT;
	watch(s, fd, events);
}

static void serve_client(struct shard *s, int fd)
{
	struct conn *c = &s->conns[fd];

	if ((c->state == CONNECTING || c->state == SENDING) && !send_some(s, fd))
		return;
	if (c->state == RECEIVING)
		receive(s, fd);
}

/* Server. */

static void server_end(struct shard *s, int fd)
{
	close(fd);
	s->conns[fd].state = FREE;
}

static void serve(struct shard *s, int fd, uint32_t events)
{
	struct conn *c = &s->conns[fd];
	int error;

	if (!received(c, fd, &error))
		return;
	if (error) {
		server_end(s, fd);
		return;
	}
	while (c->sent < bytes) {
		ssize_t n = send(fd, request + c->sent, bytes - c->sent, MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			server_end(s, fd);
			return;
		}
		c->sent += n;
	}
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
		server_end(s, fd);
}

/* Reports whether the queue may have more. */
static bool accept_some(struct shard *s)
{
	for (int i = 0; i < ACCEPT_BURST; i++) {
		int fd = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0 && errno == EAGAIN)
			return false;
		if (fd < 0)
			continue;
		if (fd >= s->limit)
			die("accept");
		s->conns[fd] = (struct conn){.state = SERVING};
		serve(s, fd, 0);
		if (s->conns[fd].state == SERVING)
			watch(s, fd, EPOLLIN | EPOLLRDHUP | (bytes > 8192 ? EPOLLOUT : 0));
	}
	return true;
}

static void start_listening(struct shard *s)
{
	int one = 1;

	s->listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
	setsockopt(s->listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (shards > 1)
		setsockopt(s->listener, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
	if (bind(s->listener, (struct sockaddr *)&target, sizeof(target)))
		die("bind");
	if (listen(s->listener, backlog))
		die("listen");
	watch(s, s->listener, EPOLLIN);
}

/* A turn: open, accept, wait if there is nothing to do, serve. */
static void turn(struct shard *s, bool *queued)
{
	struct epoll_event events[EVENTS];
	int burst = BURST, n;
	bool busy;

	while (burst-- > 0 && s->to_open > 0 && s->open < concurrency)
		open_one(s);
	if (s->listener >= 0 && *queued)
		*queued = accept_some(s);
	/* A client whose last connects all failed has nothing to wait for either. */
	busy = *queued || (s->to_open > 0 && s->open < concurrency);
	n = epoll_wait(s->epfd, events, EVENTS, !busy && (s->open > 0 || s->for_ever) ? -1 : 0);
	for (int i = 0; i < n; i++) {
		int fd = events[i].data.fd;

		if (fd == s->listener)
			*queued = true;
		else if (s->conns[fd].state == SERVING)
			serve(s, fd, events[i].events);
		else if (s->conns[fd].state != FREE)
			serve_client(s, fd);
	}
}

static void set_up(struct shard *s, struct result *r)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		die("getrlimit");
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	s->limit = limit.rlim_cur < 1 << 20 ? limit.rlim_cur : 1 << 20;
	s->conns = calloc(s->limit, sizeof(*s->conns));
	s->result = r;
	s->listener = -1;
	s->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (s->epfd < 0 || !s->conns)
		die("set up");
	/* The table of descriptors grows in one step. */
	close(fcntl(s->epfd, F_DUPFD_CLOEXEC,
		    (s->limit < 2 * concurrency + 64 ? s->limit : 2 * concurrency + 64) - 1));
}

static void run_client(struct shard *s, bool *queued)
{
	for (s->loop = 0; s->loop < loops; s->loop++) {
		s->result->begun[s->loop] = now();
		s->to_open = connections;
		while (s->to_open > 0 || s->open > 0)
			turn(s, queued);
		s->result->ended[s->loop] = now();
	}
}

static void run_shard(const char *mode, int id, struct result *r)
{
	struct shard s = {};
	bool queued = false;
	cpu_set_t cpu;

	if (!strcmp(mode, "both")) {
		CPU_ZERO(&cpu);
		CPU_SET(id, &cpu);
		sched_setaffinity(0, sizeof(cpu), &cpu);
		/* A port for each, so that both ends are in one loop. */
		target.sin_port = htons(ntohs(target.sin_port) + id);
		shards = 1;
	}
	set_up(&s, r);
	if (strcmp(mode, "client"))
		start_listening(&s);
	if (!strcmp(mode, "server")) {
		s.for_ever = true;
		for (;;)
			turn(&s, &queued);
	}
	run_client(&s, &queued);
}

/* Processes. */

static pid_t children[MAX_SHARDS];

/* A parent that is told to end waits for its children, so that what they used is counted. */
static void pass_on(int signal)
{
	for (int i = 0; i < MAX_SHARDS && children[i]; i++)
		kill(children[i], signal);
}

static void start_child(const char *mode, int id, struct result *r)
{
	pid_t parent = getpid(), pid = fork();

	if (pid < 0)
		die("fork");
	if (pid) {
		children[id] = pid;
		return;
	}
	signal(SIGTERM, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		exit(1);
	run_shard(mode, id, r);
	exit(0);
}

static bool wait_for_children(void)
{
	bool failed = false;
	int status;

	while (wait(&status) > 0) /* goes on after a signal: SA_RESTART */
		failed |= status != 0;
	return failed;
}

static void report(struct result *all)
{
	for (int loop = 0; loop < loops; loop++) {
		uint64_t begun = UINT64_MAX, ended = 0;
		int finished = 0, failed = 0;

		for (int i = 0; i < shards; i++) {
			finished += all[i].finished[loop];
			failed += all[i].failed[loop];
			begun = all[i].begun[loop] < begun ? all[i].begun[loop] : begun;
			ended = all[i].ended[loop] > ended ? all[i].ended[loop] : ended;
		}
		printf("%d %d %d %.6f\n", loop + 1, finished, failed, (ended - begun) / 1e9);
	}
	for (int e = 0; e < ERRNOS; e++) {
		int n = 0;

		for (int i = 0; i < shards; i++)
			n += all[i].errors[e];
		if (n)
			fprintf(stderr, "%d %s\n", n, strerror(e));
	}
}

int main(int argc, char **argv)
{
	struct result *all;
	const char *mode;
	int o;

	while ((o = getopt(argc, argv, "l:n:c:b:gs:q:")) > 0) {
		switch (o) {
		case 'l':
			loops = atoi(optarg);
			break;
		case 'n':
			connections = atoi(optarg);
			break;
		case 'c':
			concurrency = atoi(optarg);
			break;
		case 'b':
			bytes = atoi(optarg);
			break;
		case 'g':
			linger = true;
			break;
		case 's':
			shards = atoi(optarg);
			break;
		case 'q':
			backlog = atoi(optarg);
			break;
		default:
			return 2;
		}
	}
	if (argc - optind != 3 || loops < 1 || loops > MAX_LOOPS || shards < 1 ||
	    shards > MAX_SHARDS) {
		fprintf(stderr, "usage: %s [options] server|client|both ADDRESS PORT\n", argv[0]);
		return 2;
	}
	mode = argv[optind];
	target.sin_family = AF_INET;
	target.sin_port = htons(atoi(argv[optind + 2]));
	if (inet_pton(AF_INET, argv[optind + 1], &target.sin_addr) != 1) {
		fprintf(stderr, "%s is no IPv4 address\n", argv[optind + 1]);
		return 2;
	}
	connections /= shards;
	if (!concurrency || concurrency > connections * shards)
		concurrency = connections * shards;
	concurrency = (concurrency + shards - 1) / shards;
	request = malloc(bytes + 1);
	scratch = malloc(bytes + 1);
	memset(request, 'a', bytes);
	all = mmap(NULL, shards * sizeof(*all), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		   -1, 0);
	if (all == MAP_FAILED)
		die("mmap");
	if (shards == 1) {
		run_shard(mode, 0, &all[0]);
	} else {
		signal(SIGTERM, pass_on);
		for (int i = 0; i < shards; i++)
			start_child(mode, i, &all[i]);
		if (wait_for_children())
			return 1;
	}
	report(all);
	return 0;
}
