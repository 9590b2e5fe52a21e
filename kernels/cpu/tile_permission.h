// Matrix tiles (Intel AMX): whether this process may use them for bf16.
#pragma once

namespace carousel::cpu {

// True if the processor has tiles with bf16 products, the kernel saves their registers and lets this process
// use them. Asks the kernel for the permission, which is one system call and holds for every thread; may be
// called repeatedly.
bool RequestTilePermission();

}  // namespace carousel::cpu
