// Runs kernels block by block: every thread of a block is a fibre, and a scheduler resumes those
// that nothing holds back. The order in which blocks and threads run comes from a number: a kernel
// whose result depends on it is wrong. By even numbers a warp runs as far ahead of the others as
// barriers let it, by odd ones all threads keep abreast; 0 and 1 go forwards and backwards, others
// are shuffled.
//
// A mistake in a kernel (threads that wait at different barriers, or for threads that have ended)
// ends the process with a line that says so.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "shim.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define BEFORE_SWITCH(fake, stack, bytes) __sanitizer_start_switch_fiber(fake, stack, bytes)
#define AFTER_SWITCH(fake, stack, bytes) __sanitizer_finish_switch_fiber(fake, stack, bytes)
#else
#define BEFORE_SWITCH(fake, stack, bytes) (void)(fake), (void)(stack), (void)(bytes)
#define AFTER_SWITCH(fake, stack, bytes) (void)(fake), (void)(stack), (void)(bytes)
#endif

// ---- switching ---------------------------------------------------------------------------------

#if defined(__x86_64__)
// Saves the registers that a call preserves, and the stack; goes on with another stack. No system
// call, unlike swapcontext: a block switches some ten thousand times.
struct Context {
    void* stack;
};
extern "C" void ebbtide_switch(Context* from, const Context* to);
asm(R"(
.text
.type ebbtide_switch, @function
ebbtide_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size ebbtide_switch, . - ebbtide_switch
)");
static void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes) - 2;
    *top = reinterpret_cast<void*>(entry);
    context.stack = top - 6;
}
#else
#include <ucontext.h>
typedef ucontext_t Context;
static void ebbtide_switch(Context* from, const Context* to) { swapcontext(from, to); }
static void prepare(Context& context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

// ---- a block -----------------------------------------------------------------------------------

namespace host {

HOST_THREAD_LOCAL Thread* current;

namespace {

constexpr size_t STACK_BYTES = 128 << 10;
constexpr unsigned WARP = 32;

enum class State { Ready, AtBlockBarrier, AtWarpBarrier, Ended };

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

struct Fibre : Thread {
    std::vector<Copy> copies;
    Context context;
    char* stack;
    void* fake_stack;
    State state;
    unsigned exchanges;
};

struct Warp {
    unsigned waiting;
    // Two, since a lane may be at its next exchange while others still read this one's.
    Gift gifts[2][WARP];
};

struct Named {
    const void* name;
    char* bytes;
};

// What runs one launch, on the OS thread that asked for it.
struct Machine {
    void (*call)(void**);
    void** arguments;
    const char* name;
    std::vector<Fibre> fibres;
    std::vector<Warp> warps;
    std::vector<std::unique_ptr<char[]>> stacks;
    std::vector<Named> named;
    char* dynamic_bytes;
    unsigned waiting_in_block;
    Context scheduler;
    void* scheduler_fake_stack;
    const void* scheduler_stack;
    size_t scheduler_stack_bytes;

    void run(const unsigned grid[3], unsigned threads, unsigned shared_bytes);
    void run_block(const std::vector<unsigned>& turns, size_t together, unsigned shared_bytes);
    size_t resume_some(const unsigned* turns, size_t count, bool& moved);
    void resume(Fibre& fibre);
    void pause(State state);
    void ready(State from, size_t first, size_t count);
    [[noreturn]] void fail(const char* what);
};

const Kernel* kernels;
// The one that this thread runs a kernel with.
HOST_THREAD_LOCAL Machine* machine;

// Machines that run nothing. They are kept for their stacks; there are as many as there were
// launches at once.
std::mutex idle_lock;
std::vector<std::unique_ptr<Machine>> idle;

// A machine out of those, while a launch runs.
class Lent {
public:
    Lent() {
        const std::lock_guard<std::mutex> guard(idle_lock);
        if (idle.empty()) {
            mine.reset(new Machine());
        } else {
            mine = std::move(idle.back());
            idle.pop_back();
        }
        machine = mine.get();
    }
    ~Lent() {
        machine = nullptr;
        const std::lock_guard<std::mutex> guard(idle_lock);
        idle.push_back(std::move(mine));
    }

private:
    std::unique_ptr<Machine> mine;
};

void Machine::fail(const char* what) {
    std::fprintf(stderr, "kernel %s: %s\n", name, what);
    std::abort();
}

Fibre& running() { return *static_cast<Fibre*>(current); }

void Machine::pause(State state) {
    Fibre& fibre = running();
    fibre.state = state;
    BEFORE_SWITCH(&fibre.fake_stack, scheduler_stack, scheduler_stack_bytes);
    ebbtide_switch(&fibre.context, &scheduler);
    AFTER_SWITCH(fibre.fake_stack, nullptr, nullptr);
}

void enter() {
    Machine& mine = *machine;
    AFTER_SWITCH(nullptr, &mine.scheduler_stack, &mine.scheduler_stack_bytes);
    mine.call(mine.arguments);
    Fibre& fibre = running();
    fibre.state = State::Ended;
    BEFORE_SWITCH(nullptr, mine.scheduler_stack, mine.scheduler_stack_bytes);
    ebbtide_switch(&fibre.context, &mine.scheduler);
    std::abort();
}

void Machine::resume(Fibre& fibre) {
    current = &fibre;
    BEFORE_SWITCH(&scheduler_fake_stack, fibre.stack, STACK_BYTES);
    ebbtide_switch(&scheduler, &fibre.context);
    AFTER_SWITCH(scheduler_fake_stack, nullptr, nullptr);
}

// Shuffles by splitmix64 (Steele et al. 2014).
void order(std::vector<unsigned>& numbers, unsigned long long seed) {
    std::iota(numbers.begin(), numbers.end(), 0u);
    if (seed == 1) std::reverse(numbers.begin(), numbers.end());
    if (seed <= 1) return;
    for (size_t left = numbers.size(); left > 1; left--) {
        unsigned long long z = seed += 0x9E3779B97F4A7C15ull;
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ z >> 27) * 0x94D049BB133111EBull;
        std::swap(numbers[left - 1], numbers[(z ^ z >> 31) % left]);
    }
}

// Resumes threads by turns, each if it may run; how many ended.
size_t Machine::resume_some(const unsigned* turns, size_t count, bool& moved) {
    size_t ended = 0;
    for (size_t i = 0; i < count; i++) {
        Fibre& fibre = fibres[turns[i]];
        if (fibre.state != State::Ready) continue;
        resume(fibre);
        moved = true;
        ended += fibre.state == State::Ended;
    }
    return ended;
}

// `together`: as many threads as keep abreast.
void Machine::run_block(const std::vector<unsigned>& turns, size_t together,
                        unsigned shared_bytes) {
    dynamic_bytes = static_cast<char*>(std::malloc(shared_bytes ? shared_bytes : 1));
    std::memset(dynamic_bytes, 0xFF, shared_bytes);
    for (Warp& warp : warps) warp.waiting = 0;
    waiting_in_block = 0;
    for (Fibre& fibre : fibres) {
        fibre.state = State::Ready;
        fibre.exchanges = 0;
        fibre.copies.clear();
        prepare(fibre.context, fibre.stack, STACK_BYTES, enter);
    }
    size_t ended = 0;
    while (ended < fibres.size()) {
        bool any = false;
        for (size_t first = 0; first < turns.size(); first += together)
            for (bool moved = true; moved; any |= moved) {
                moved = false;
                ended += resume_some(&turns[first], together, moved);
            }
        if (!any)
            fail(ended ? "threads wait for threads that have ended"
                       : "threads wait at different barriers");
    }
    for (Named& memory : named) std::free(memory.bytes);
    named.clear();
    std::free(dynamic_bytes);
}

void Machine::ready(State from, size_t first, size_t count) {
    for (size_t i = first; i < first + count; i++)
        if (fibres[i].state == from) fibres[i].state = State::Ready;
}

void Machine::run(const unsigned grid[3], unsigned threads, unsigned shared_bytes) {
    while (stacks.size() < threads) stacks.emplace_back(new char[STACK_BYTES]);
    fibres.resize(threads);
    warps.resize(threads / WARP);
    const char* text = std::getenv("EBBTIDE_ORDER");
    const unsigned long long seed = text ? std::strtoull(text, nullptr, 10) : 0;
    std::vector<unsigned> blocks(size_t(grid[0]) * grid[1] * grid[2]);
    std::vector<unsigned> turns(threads), lanes(WARP), of_warps(threads / WARP);
    order(blocks, seed);
    for (unsigned i = 0; i < threads; i++) {
        Fibre& fibre = fibres[i];
        fibre.thread = {i, 0, 0};
        fibre.block_dim = {threads, 1, 1};
        fibre.grid_dim = {grid[0], grid[1], grid[2]};
        fibre.stack = stacks[i].get();
    }
    bool first = true;
    for (unsigned number : blocks) {
        // Blocks are shuffled each in its own way; else all have the same turns.
        if (first || seed > 1) {
            const unsigned long long of_block = seed > 1 ? seed + number : seed;
            order(lanes, of_block);
            order(of_warps, of_block);
            for (unsigned i = 0; i < threads; i++)
                turns[i] = of_warps[i / WARP] * WARP + lanes[i % WARP];
            first = false;
        }
        const Index block = {number % grid[0], number / grid[0] % grid[1],
                             number / grid[0] / grid[1]};
        for (Fibre& fibre : fibres) fibre.block = block;
        run_block(turns, seed % 2 ? threads : WARP, shared_bytes);
    }
}

}  // namespace

Kernel::Kernel(const char* name, unsigned most_threads, Kernel from) : Kernel(from) {
    this->name = name;
    this->most_threads = most_threads;
    next = kernels;
    kernels = this;
}

void block_barrier() {
    Machine& mine = *machine;
    if (++mine.waiting_in_block < mine.fibres.size()) return mine.pause(State::AtBlockBarrier);
    mine.waiting_in_block = 0;
    mine.ready(State::AtBlockBarrier, 0, mine.fibres.size());
}

const Gift* exchange(const void* mine, size_t bytes) {
    Fibre& fibre = running();
    const unsigned lane = fibre.thread.x % WARP, number = fibre.thread.x / WARP;
    Warp& warp = machine->warps[number];
    Gift* const gifts = warp.gifts[fibre.exchanges++ % 2];
    std::memcpy(gifts[lane], mine, bytes);
    if (++warp.waiting < WARP) {
        machine->pause(State::AtWarpBarrier);
    } else {
        warp.waiting = 0;
        machine->ready(State::AtWarpBarrier, number * WARP, WARP);
    }
    return gifts;
}

void begin_copy(void* to, const void* from, size_t bytes) {
    std::memset(to, 0xFF, bytes);
    running().copies.push_back({to, from, bytes});
}

void wait_for_copies() {
    std::vector<Copy>& copies = running().copies;
    for (const Copy& copy : copies)
        if (copy.from)
            std::memcpy(copy.to, copy.from, copy.bytes);
        else
            std::memset(copy.to, 0, copy.bytes);
    copies.clear();
}

void* shared(const void* name, size_t bytes) {
    for (const Named& memory : machine->named)
        if (memory.name == name) return memory.bytes;
    char* memory = static_cast<char*>(std::malloc(bytes));
    std::memset(memory, 0xFF, bytes);
    machine->named.push_back({name, memory});
    return memory;
}

void* dynamic_shared() { return machine->dynamic_bytes; }

}  // namespace host

// ---- what the library exports ------------------------------------------------------------------

using namespace host;

static const Kernel* find(const char* name) {
    for (const Kernel* kernel = kernels; kernel; kernel = kernel->next)
        if (std::strcmp(kernel->name, name) == 0) return kernel;
    return nullptr;
}

// How many parameters a kernel has and how many bytes each, 0 for addresses; -1: there is no such
// kernel.
extern "C" int ebbtide_host_parameters(const char* kernel, const size_t** bytes) {
    const Kernel* found = find(kernel);
    if (!found) return -1;
    *bytes = found->parameter_bytes;
    return int(found->parameters);
}

// Runs a kernel to its end. 0: done, 1: there is no such kernel, 2: a grid or block that it cannot
// have. Blocks and threads run in the order of the environment's EBBTIDE_ORDER, a number.
extern "C" int ebbtide_host_launch(const char* kernel, const unsigned grid[3],
                                   const unsigned block[3], unsigned shared_bytes,
                                   void** arguments) {
    const Kernel* found = find(kernel);
    if (!found) return 1;
    const unsigned threads = block[0];
    const bool possible = threads > 0 && threads % WARP == 0 && threads <= found->most_threads &&
                          block[1] == 1 && block[2] == 1 && grid[0] > 0 && grid[1] > 0 &&
                          grid[2] > 0 && grid[0] <= 0x7FFFFFFF && grid[1] <= 65535 &&
                          grid[2] <= 65535 && shared_bytes <= 227 << 10;
    if (!possible) return 2;
    const Lent lent;
    machine->name = kernel;
    machine->call = found->call;
    machine->arguments = arguments;
    machine->run(grid, threads, shared_bytes);
    return 0;
}
