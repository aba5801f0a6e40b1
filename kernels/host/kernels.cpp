// All kernels for one type of elements.
#include <cmath>

#include "../attention.cuh"
#include "../update.cuh"

namespace memory {
#include "../memory.cu"
}
namespace embedding {
#include "../embedding.cu"
}
namespace norm {
#include "../norm.cu"
}
namespace sums {
#include "../sums.cu"
}
namespace rotary {
#include "../rotary.cu"
}
namespace activation {
#include "../activation.cu"
}
namespace cross_entropy {
#include "../cross_entropy.cu"
}
namespace update {
#include "../update.cu"
}
namespace tensors {
#include "../tensors.cu"
}
namespace factored {
#include "../factored.cu"
}
namespace low_rank {
#include "../low_rank.cu"
}
namespace product {
#include "product.cu"
}
namespace packed {
#include "../packed.cu"
}
namespace attention {
#include "../attention.cu"
}
namespace attention_mma {
#include "../attention_mma.cu"
}
