/* Shapes of register tiles: rows x columns of pixels. As many sums as there are registers for, so
 * that a weight is loaded once for many multiply-adds. Each shape is its own function.
 *
 * PAIR_VISIT: the backward takes dy in blocks of channels where each has so many nonzeros of an input
 * channel, because each block costs a tile of dx read and written. TRIO_SIXTEENTHS: layers that keep
 * so many sixteenths of their weights take fast_trio.h, 0: none. All measured but for NEON, whose
 * tiles are those of AVX2. */
#ifndef SFD_FAST_SHAPES_H
#define SFD_FAST_SHAPES_H

#include "fast_vector.h"

#if SFD_LANES == 16 /* 32 registers, a pixel is one */
#define TILE_PIXELS 16u
#define PAIR_PIXELS 8u
#define PAIR_VISIT FAST_LEAST_VISIT
#define TRIO_SIXTEENTHS 6u
#elif defined(__aarch64__) /* 32 registers, a pixel is four */
#define TILE_PIXELS 4u
#define PAIR_PIXELS 2u
#define PAIR_VISIT 64u
#define TRIO_SIXTEENTHS 12u
#elif SFD_LANES == 8 /* 16 registers, a pixel is two */
#define TILE_PIXELS 6u
#define PAIR_PIXELS 2u
#define PAIR_VISIT 64u
#define TRIO_SIXTEENTHS 12u
#else /* 16 registers, a pixel is four */
#define TILE_PIXELS 3u
#define PAIR_PIXELS 1u
#define PAIR_VISIT 64u
#define TRIO_SIXTEENTHS 0u
#endif

#define TILES_OF_1(X) X(1, 1)
#define TILES_OF_2(X) TILES_OF_1(X) X(1, 2) X(2, 1)
#define TILES_OF_3(X) TILES_OF_2(X) X(1, 3)
#define TILES_OF_4(X) TILES_OF_3(X) X(1, 4) X(2, 2) X(4, 1)
#define TILES_OF_6(X) TILES_OF_4(X) X(1, 5) X(1, 6) X(2, 3)
#define TILES_OF_8(X) TILES_OF_6(X) X(1, 7) X(1, 8) X(2, 4) X(4, 2)
#define TILES_OF_16(X) \
    TILES_OF_8(X)      \
    X(1, 9)            \
    X(1, 10)           \
    X(1, 11)           \
    X(1, 12) X(1, 13) X(1, 14) X(1, 15) X(1, 16) X(2, 5) X(2, 6) X(2, 7) X(2, 8) X(4, 3) X(4, 4)

/* Tiles of one set of sums (forward), and of two (backward: dx and x). */
#if SFD_LANES == 16
#define FOR_TILE_SHAPES TILES_OF_16
#define FOR_PAIR_SHAPES TILES_OF_8
#elif defined(__aarch64__)
#define FOR_TILE_SHAPES TILES_OF_4
#define FOR_PAIR_SHAPES TILES_OF_2
#elif SFD_LANES == 8
#define FOR_TILE_SHAPES TILES_OF_6
#define FOR_PAIR_SHAPES TILES_OF_2
#else
#define FOR_TILE_SHAPES TILES_OF_3
#define FOR_PAIR_SHAPES TILES_OF_1
#endif

/* The entry of a table of shapes: rows 1, 2 or 4. */
#define TILE_INDEX(rows, columns) ((rows) / 2 * TILE_PIXELS + (columns)-1)
#define TILE_SHAPES (3 * TILE_PIXELS)

#endif
