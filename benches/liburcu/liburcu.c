/*
 * liburcu's figures for the rows of `cargo bench --bench rcu`: a read-side section, and 64 bytes allocated, written, and
 * freed by call_rcu. Needs a C compiler and liburcu:
 *
 *     apt-get install gcc liburcu-dev
 *     gcc -O2 -DURCU_INLINE_SMALL_FUNCTIONS -D_LGPL_SOURCE benches/liburcu/liburcu.c -o target/liburcu -lurcu-memb
 *     target/liburcu
 *
 * The flavour is the one with sys_membarrier, whose readers need no more of their program than to register. (Those of QSBR
 * pay nothing for a section, and announce quiet states themselves.)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <urcu/compiler.h>
#include <urcu/urcu-memb.h>

struct object {
	struct rcu_head head;
	char rest[64 - sizeof(struct rcu_head)];
};

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void give_back(struct rcu_head *head)
{
	free(caa_container_of(head, struct object, head));
}

int main(void)
{
	const long sections = 200000000, objects = 5000000;

	urcu_memb_register_thread();
	for (int round = 0; round < 3; round++) {
		double start = now();
		for (long i = 0; i < sections; i++) {
			urcu_memb_read_lock();
			__asm__ volatile("" ::: "memory");
			urcu_memb_read_unlock();
		}
		double read = now();
		for (long i = 0; i < objects; i++) {
			struct object *object = malloc(sizeof *object);
			if (!object)
				return 1;
			memset(object, 0, sizeof *object);
			urcu_memb_call_rcu(&object->head, give_back);
		}
		urcu_memb_barrier();
		printf("section %.2f ns, allocate and defer the free of 64 bytes %.1f ns\n", (read - start) / sections,
		       (now() - read) / objects);
	}
	urcu_memb_unregister_thread();
	return 0;
}
