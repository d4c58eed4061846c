// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package mirror asks the mirrors of a registry for content, and nobody else.
//
// The mirrors are the [host] entries of the hosts.toml that containerd itself reads.
// What is the registry in truth is left out: the "server" line, the implicit
// https://<registry>, an entry that names either of them, and all of these under the
// other names that docker.io goes by. No redirect is followed to another host.
//
// The mirror that this is made for is Spegel, whose misses are often wrong and repeat
// for some seconds. So a Client sends GET and never HEAD, one request at a time for a
// key, and after a miss leaves that key alone for a while (Gates). What a miss means
// for a pull is up to the caller.
package mirror
