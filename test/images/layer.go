// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Layer returns a layer with one file, named as the layer, of size
// incompressible bytes. The blob is larger by some 2 KiB and 0.01 %.
func Layer(name string, size int64) v1.Layer {
	return newLayer(name, 0o644, size, func() io.Reader {
		return io.LimitReader(rand.NewChaCha8(sha256.Sum256([]byte(name))), size)
	})
}

// Layers returns n layers of size bytes each, named name-0, name-1 and so on.
func Layers(name string, n int, size int64) []v1.Layer {
	layers := make([]v1.Layer, n)
	for i := range layers {
		layers[i] = Layer(fmt.Sprintf("%s-%d", name, i), size)
	}
	return layers
}

// Zeros returns a layer with one file, named as the layer, of size zeros. The blob is a thousand times
// smaller.
func Zeros(name string, size int64) v1.Layer {
	l := newLayer(name, 0o644, size, func() io.Reader { return io.LimitReader(zeros{}, size) })
	l.level = gzip.BestSpeed
	return l
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Empty returns a layer of n empty files, named name-0, name-1 and so on.
func Empty(name string, n int) v1.Layer {
	l := newLayer(name, 0o644, 0, func() io.Reader { return bytes.NewReader(nil) })
	l.level, l.files = gzip.BestSpeed, n
	return l
}

// programLayer returns a layer with the file as an executable at the root.
func programLayer(binaryPath string) (v1.Layer, error) {
	program, err := os.ReadFile(binaryPath)
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	return newLayer(path.Base(binaryPath), 0o755, int64(len(program)), func() io.Reader {
		return bytes.NewReader(program)
	}), nil
}

// layer is a tar of one file, or of several with the same content, made again for each reader.
type layer struct {
	header  tar.Header
	content func() io.Reader
	files   int // their names end in their number; 0 is one file with its own name
	level   int // of gzip
	sums    func() (sums, error)
}

var _ v1.Layer = &layer{}

type sums struct {
	digest, diffID v1.Hash
	size           int64
	blob           []byte // of a layer that is compressed, which is small, and slow to make again
}

func newLayer(name string, mode, size int64, content func() io.Reader) *layer {
	l := &layer{
		header:  tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, Format: tar.FormatPAX},
		content: content,
	}
	l.sums = sync.OnceValues(l.sum)
	return l
}

func (l *layer) writeTar(w io.Writer) error {
	tw, buffer := tar.NewWriter(w), make([]byte, copyBuffer)
	for i := range max(1, l.files) {
		header := l.header
		if l.files > 0 {
			header.Name = fmt.Sprintf("%s-%d", header.Name, i)
		}
		if err := tw.WriteHeader(&header); err != nil {
			return err
		}
		if _, err := io.CopyBuffer(tw, l.content(), buffer); err != nil {
			return err
		}
	}
	return tw.Close()
}

// writeGzip stores rather than deflates: the content does not compress, and
// the time of a pull should be the network's.
func (l *layer) writeGzip(w io.Writer) error {
	zw, err := gzip.NewWriterLevel(w, gzip.NoCompression)
	if err != nil {
		return err
	}
	if err := l.writeTar(zw); err != nil {
		return err
	}
	return zw.Close()
}

// sum makes the stream once, for both digests.
func (l *layer) sum() (sums, error) {
	compressed, plain := sha256.New(), sha256.New()
	var size counter
	var blob bytes.Buffer
	to := io.MultiWriter(compressed, &size)
	if l.level != gzip.NoCompression {
		to = io.MultiWriter(to, &blob)
	}
	zw, err := gzip.NewWriterLevel(to, l.level)
	if err != nil {
		return sums{}, err
	}
	if err := l.writeTar(io.MultiWriter(zw, plain)); err != nil {
		return sums{}, err
	}
	if err := zw.Close(); err != nil {
		return sums{}, err
	}
	return sums{
		digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(compressed.Sum(nil))},
		diffID: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(plain.Sum(nil))},
		size:   int64(size),
		blob:   blob.Bytes(),
	}, nil
}

// Digest implements v1.Layer.
func (l *layer) Digest() (v1.Hash, error) {
	s, err := l.sums()
	return s.digest, err
}

// DiffID implements v1.Layer.
func (l *layer) DiffID() (v1.Hash, error) {
	s, err := l.sums()
	return s.diffID, err
}

// Size implements v1.Layer.
func (l *layer) Size() (int64, error) {
	s, err := l.sums()
	return s.size, err
}

// MediaType implements v1.Layer.
func (l *layer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

// Compressed implements v1.Layer.
func (l *layer) Compressed() (io.ReadCloser, error) {
	if l.level == gzip.NoCompression {
		return stream(l.writeGzip), nil
	}
	s, err := l.sums()
	return io.NopCloser(bytes.NewReader(s.blob)), err
}

// Uncompressed implements v1.Layer.
func (l *layer) Uncompressed() (io.ReadCloser, error) { return stream(l.writeTar), nil }

const copyBuffer = 128 << 10

// stream turns a writing function into a reader. Closing the reader ends the
// function, also in the middle.
func stream(write func(io.Writer) error) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		buffered := bufio.NewWriterSize(w, copyBuffer)
		err := write(buffered)
		if err == nil {
			err = buffered.Flush()
		}
		w.CloseWithError(err)
	}()
	return r
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
