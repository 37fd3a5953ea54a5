package wire

import "iter"

// A ring has room for the latest of what is put into it.
type ring[T any] struct {
	room []T
	put  int // how many were
}

func newRing[T any](size int) ring[T] { return ring[T]{room: make([]T, size)} }

// next is the place for one more, where the oldest is if there is no room.
func (r *ring[T]) next() *T {
	place := &r.room[r.put%len(r.room)]
	r.put++
	return place
}

// all are those that are there, the oldest first.
func (r *ring[T]) all() iter.Seq[T] {
	return func(yield func(T) bool) {
		for i := max(r.put-len(r.room), 0); i < r.put; i++ {
			if !yield(r.room[i%len(r.room)]) {
				return
			}
		}
	}
}
