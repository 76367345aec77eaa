/* Runs a program once and says what that took: `launcher INPUT PROGRAM ARGUMENT...`.
 *
 * It is small and static, so that starting the program costs no more than it has to, and so that
 * the peak memory that the kernel tells (getrusage(2): a process begins with its parent's) is the
 * program's own.
 *
 * Prints: nanoseconds from before fork to after wait, page faults, peak memory in KiB, wait status.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv, char **environment)
{
    if (argc < 3)
        return 2;
    int input = open(argv[1], O_RDONLY | O_CLOEXEC);
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (input < 0 || nowhere < 0)
        return 1;
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    pid_t child = vfork();
    if (child == 0) {
        dup2(input, 0);
        dup2(nowhere, 1);
        dup2(nowhere, 2);
        execve(argv[2], argv + 2, environment);
        _exit(127);
    }
    int status;
    struct rusage usage;
    if (child < 0 || wait4(child, &status, 0, &usage) != child)
        return 1;
    clock_gettime(CLOCK_MONOTONIC, &after);
    long long took = (after.tv_sec - before.tv_sec) * 1000000000LL + after.tv_nsec - before.tv_nsec;
    printf("%lld %ld %ld %d\n", took, usage.ru_minflt + usage.ru_majflt, usage.ru_maxrss, status);
    return 0;
}
