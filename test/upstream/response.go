// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// response passes an answer on through the uplink: paced, counted, and broken
// where its effect says so.
type response struct {
	http.ResponseWriter
	ctx     context.Context
	started bool // the header is written
	server  *Server
	request *Request
	effect  Effect
	sent    int64 // body bytes
}

var errReset = errors.New("connection was reset on purpose")

// WriteHeader implements http.ResponseWriter.
func (r *response) WriteHeader(status int) {
	r.started = true
	r.note(func(request *Request) {
		request.Status = status
		request.Offset = offsetOf(r.Header().Get("Content-Range"))
	})
	r.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (r *response) Write(p []byte) (int, error) {
	if !r.started {
		r.WriteHeader(http.StatusOK)
	}
	written := 0
	for written < len(p) {
		n := int64(len(p) - written)
		if until, broken := r.effect.breaksAfter(); broken {
			if r.sent >= until {
				if err := r.breakOff(); err != nil {
					return written, err
				}
				continue
			}
			n = min(n, until-r.sent)
		}
		granted, err := r.server.acquire(r.ctx, int(n))
		if err != nil {
			return written, err
		}
		done, err := r.ResponseWriter.Write(p[written : written+granted])
		written += done
		r.sent += int64(done)
		r.note(func(request *Request) { request.Bytes = r.sent })
		if err == nil && int64(granted) < n {
			// The uplink delays the body: do not delay it further by
			// collecting pieces.
			err = http.NewResponseController(r.ResponseWriter).Flush()
		}
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// breakOff does what the effect says. It returns nil if the body goes on.
func (r *response) breakOff() error {
	if err := http.NewResponseController(r.ResponseWriter).Flush(); err != nil {
		return err
	}
	if r.effect.action == stall {
		fault := r.effect.fault
		err := r.server.waitUntil(r.ctx, func() bool { return fault.removed })
		r.effect = Effect{}
		return err
	}
	conn, _, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err != nil {
		return err
	}
	return errors.Join(errReset, reset(r.ctx, conn))
}

// reset ends the connection with a RST. Before, it lets the client's kernel
// acknowledge what was written: a RST overtakes what is still to be sent, and
// the client would get less than it was promised.
func reset(ctx context.Context, conn net.Conn) error {
	defer conn.Close()
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for queued := 1; queued > 0 && ctx.Err() == nil; {
		err := raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	if err := tcp.SetLinger(0); err != nil {
		return err
	}
	return tcp.Close()
}

// finish closes the request's record.
func (r *response) finish() {
	length, err := strconv.ParseInt(r.Header().Get("Content-Length"), 10, 64)
	short := err == nil && r.sent < length && r.request.Method != http.MethodHead
	r.note(func(request *Request) {
		request.Done, request.End = true, time.Now()
		request.Complete = request.Status/100 == 2 && !short
	})
}

func (r *response) note(change func(*Request)) {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	change(r.request)
}
