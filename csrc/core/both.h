// What host and device compile alike. Under g++ the mark is a plain inline.
#pragma once

#ifdef __CUDACC__
#define KDTW_BOTH __host__ __device__ __forceinline__
#else
#define KDTW_BOTH inline
#endif
