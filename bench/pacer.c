/* The floor of the pacemaker: fchdir(2) at an even rate, from C. Usage: pacer RATE; ends when its standard input does. */
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    long pause = 1000000000L / (argc > 1 ? atol(argv[1]) : 1000);
    int here = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    struct timespec turn, now;
    clock_gettime(CLOCK_MONOTONIC, &turn);
    for (unsigned long calls = 0;; calls++) {
        if (fchdir(here))
            return 1;
        if (!(calls & 127) && poll(&input, 1, 0))
            return 0;
        turn.tv_nsec += pause;
        if (turn.tv_nsec >= 1000000000L) {
            turn.tv_nsec -= 1000000000L;
            turn.tv_sec++;
        }
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec > turn.tv_sec || (now.tv_sec == turn.tv_sec && now.tv_nsec > turn.tv_nsec))
            turn = now;
        else
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &turn, NULL);
    }
}
