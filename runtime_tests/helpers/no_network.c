// A machine without a network, for a process that preloads this library (LD_PRELOAD).
//
// NO_NETWORK_LOG  the file that gets a line for each use of the internet that was tried, such as `getaddrinfo example.org`
//
// Each use fails as it does without a network. Local sockets (AF_UNIX, AF_NETLINK) work.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void record(const char *call, const char *what) {
    const char *log = getenv("NO_NETWORK_LOG");
    const int file = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (file < 0) return;
    char line[300];
    const int length = snprintf(line, sizeof line, "%s %.250s\n", call, what ? what : "");
    if (write(file, line, length) < 0) abort();  // a use that is not recorded would pass as none
    close(file);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int socket(int domain, int type, int protocol) {
    if (domain != AF_INET && domain != AF_INET6) return REAL(socket)(domain, type, protocol);
    record("socket", domain == AF_INET ? "IPv4" : "IPv6");
    return errno = EAFNOSUPPORT, -1;
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    (void)service, (void)hints, (void)found;
    record("getaddrinfo", host);
    return EAI_FAIL;
}

struct hostent *gethostbyname(const char *host) {
    record("gethostbyname", host);
    return h_errno = NO_RECOVERY, NULL;
}
