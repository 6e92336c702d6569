/* A data race, planted: two threads add to a plain counter. Built for ThreadSanitizer only, where
 * the test passes when the race is reported and fails when the sanitizer has gone blind, by a
 * missing flag, a suppression or an option that hides our own code. */
#include <pthread.h>
#include <stdio.h>

static unsigned long counter;

static void *add(void *arg)
{
    (void)arg;
    for (int i = 0; i < 100000; i++) {
        counter++;
    }
    return NULL;
}

int main(void)
{
    pthread_t other;
    if (pthread_create(&other, NULL, add, NULL) != 0) {
        return 2;
    }
    add(NULL);
    pthread_join(other, NULL);
    printf("counted %lu\n", counter);
    return 0;
}
