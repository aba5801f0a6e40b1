// `run ORDER...`: runs launches that are asked for through its input and says what is in memory
// then. They run from the start in each order of threads and blocks that a request wants; a result
// that depends on it is an error. One request after the other, to the end of the input.
//
// A request, all little-endian: u32 with a bit for each order that is wanted; u32 buffers, of each u64 bytes, u64 bytes that it begins behind a
// multiple of 16, u64 bytes that are given and those, NaNs behind them; u32 launches, of each u32
// length and the kernel's name, u32 grid [3], block [3], shared bytes, arguments, of each argument
// u32 kind (0 address, 1 null, 2 a number of 4 bytes, 3 one of 8), u32 buffer, u64 value or offset.
// A result: u64 bytes, and the contents of the buffers of which something was given.
//
// Every buffer is an allocation of its own, so the address sanitizer sees what is outside it.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" int ebbtide_host_parameters(const char* kernel, const size_t** bytes);
extern "C" int ebbtide_host_launch(const char* kernel, const unsigned grid[3],
                                   const unsigned block[3], unsigned shared_bytes,
                                   void** arguments);

typedef unsigned long long u64;

static void check(bool holds, const std::string& what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what.c_str());
    std::exit(1);
}

template <class T>
static T get(FILE* file) {
    T value;
    check(std::fread(&value, sizeof value, 1, file) == 1, "the request ends early");
    return value;
}

struct Buffer {
    u64 bytes, behind;
    std::string given;
};

struct Argument {
    unsigned kind, buffer;
    u64 value;
};

struct Launch {
    std::string kernel;
    unsigned shape[7];
    std::vector<Argument> arguments;
};

static std::string text(FILE* file, u64 bytes) {
    std::string text(bytes, ' ');
    check(std::fread(&text[0], 1, bytes, file) == bytes, "the request ends early");
    return text;
}

static std::vector<Buffer> read_buffers(FILE* file) {
    std::vector<Buffer> buffers(get<unsigned>(file));
    for (Buffer& buffer : buffers) {
        buffer.bytes = get<u64>(file);
        buffer.behind = get<u64>(file);
        buffer.given = text(file, get<u64>(file));
        check(buffer.given.size() <= buffer.bytes, "more than a buffer holds");
    }
    return buffers;
}

static std::vector<Launch> read_launches(FILE* file) {
    std::vector<Launch> launches(get<unsigned>(file));
    for (Launch& launch : launches) {
        launch.kernel = text(file, get<unsigned>(file));
        for (unsigned& number : launch.shape) number = get<unsigned>(file);
        launch.arguments.resize(get<unsigned>(file));
        for (Argument& argument : launch.arguments) {
            argument.kind = get<unsigned>(file);
            argument.buffer = get<unsigned>(file);
            argument.value = get<u64>(file);
        }
    }
    return launches;
}

static void run(const Launch& launch, const std::vector<char*>& starts) {
    const std::string& name = launch.kernel;
    const size_t* sizes = nullptr;
    const int parameters = ebbtide_host_parameters(name.c_str(), &sizes);
    check(parameters >= 0, "there is no kernel " + name);
    check(parameters == int(launch.arguments.size()),
          name + " has another number of parameters: " + std::to_string(parameters));
    std::vector<u64> values;
    for (const Argument& argument : launch.arguments) {
        const u64 start = argument.kind ? 0 : reinterpret_cast<u64>(starts.at(argument.buffer));
        const size_t bytes = argument.kind < 2 ? 0 : argument.kind == 2 ? 4 : 8;
        check(sizes[values.size()] == bytes,
              name + ": parameter " + std::to_string(values.size()) + " has another size");
        values.push_back(start + argument.value);
    }
    std::vector<void*> arguments;
    for (u64& value : values) arguments.push_back(&value);
    const int code = ebbtide_host_launch(name.c_str(), launch.shape, launch.shape + 3,
                                         launch.shape[6], arguments.data());
    check(code == 0, name + " was refused with code " + std::to_string(code));
}

// What is in memory after all launches.
static std::string result_of(const std::vector<Buffer>& buffers,
                             const std::vector<Launch>& launches) {
    std::vector<char*> memory, starts;
    for (const Buffer& buffer : buffers) {
        memory.push_back(static_cast<char*>(std::malloc(buffer.behind + buffer.bytes)));
        starts.push_back(memory.back() + buffer.behind);
        std::memset(starts.back(), 0xFF, buffer.bytes);
        std::memcpy(starts.back(), buffer.given.data(), buffer.given.size());
    }
    for (const Launch& launch : launches) run(launch, starts);
    std::string result;
    for (size_t i = 0; i < buffers.size(); i++) {
        if (!buffers[i].given.empty()) result.append(starts[i], buffers[i].bytes);
        std::free(memory[i]);
    }
    return result;
}

int main(int count, char** arguments) {
    check(count > 1, "run ORDER...");
    for (int next; (next = std::getc(stdin)) != EOF;) {
        std::ungetc(next, stdin);
        const unsigned wanted = get<unsigned>(stdin);
        check(wanted && wanted >> (count - 1) == 0, "orders that there are not");
        const std::vector<Buffer> buffers = read_buffers(stdin);
        const std::vector<Launch> launches = read_launches(stdin);
        std::string first;
        bool begun = false;
        for (int i = 1; i < count; i++) {
            if (!(wanted >> (i - 1) & 1)) continue;
            setenv("EBBTIDE_ORDER", arguments[i], 1);
            const std::string result = result_of(buffers, launches);
            if (!begun) first = result;
            begun = true;
            check(result == first, std::string("another result in order ") + arguments[i]);
        }
        const u64 bytes = first.size();
        std::fwrite(&bytes, sizeof bytes, 1, stdout);
        std::fwrite(first.data(), 1, bytes, stdout);
        check(std::fflush(stdout) == 0, "nobody listens");
    }
    return 0;
}
