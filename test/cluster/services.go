// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// clusterDomain is what the names of Services end with.
const clusterDomain = "cluster.local"

// proxyHealth is where a node's kube-proxy tells how it is.
const proxyHealth = "10256"

var proxySet = set{
	name:     "kube-proxy",
	gcflags:  quick,
	dir:      kubernetesSet.dir,
	packages: []string{"k8s.io/kubernetes/cmd/kube-proxy"},
	tags:     kubernetesSet.tags,
	ldflags:  kubernetesSet.ldflags,
	sources:  moduleFiles,
}

// prepareServices builds kube-proxy.
func (c *Cluster) prepareServices(ctx context.Context) error {
	dir, err := proxySet.build(ctx, c.options.Logf)
	c.proxy = filepath.Join(dir, "kube-proxy")
	return err
}

func (n *Node) newKubeProxy() *Daemon {
	command := func() *exec.Cmd {
		return exec.Command(n.cluster.proxy,
			"--kubeconfig=/etc/kubernetes/kube-proxy.kubeconfig",
			"--hostname-override="+n.Name,
			"--proxy-mode=nftables",
			"--cluster-cidr="+n.cluster.claim.Network().String(),
			// They are the whole host's.
			"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
			"--healthz-bind-address="+net.JoinHostPort(n.IP, proxyHealth),
		)
	}
	ready := func(ctx context.Context, _ *Process) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(n.IP, proxyHealth)+"/healthz", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("kube-proxy answers %s", response.Status)
		}
		return nil
	}
	return n.newDaemon("kube-proxy", command, ready)
}

// startKubeProxy starts kube-proxy once there is an API server.
func (n *Node) startKubeProxy(ctx context.Context) error {
	select {
	case <-n.cluster.ControlPlane.ready:
		return n.KubeProxy.Start(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// nameServer tells Pods the addresses of Services, and of what nodes find at the
// gateway, where it is itself.
type nameServer struct {
	connection net.PacketConn
	gateway    net.IP
	upstream   []string
	services   func(namespace, name string) (*corev1.Service, error)
}

func (c *Cluster) startNameServer() error {
	connection, err := net.ListenPacket("udp", net.JoinHostPort(c.GatewayIP, "53"))
	if err != nil {
		return fmt.Errorf("start name server: %w", err)
	}
	c.names = &nameServer{
		connection: connection,
		gateway:    net.ParseIP(c.GatewayIP),
		upstream:   c.upstreamNames(),
		services: func(namespace, name string) (*corev1.Service, error) {
			return c.ControlPlane.client.CoreV1().Services(namespace).Get(context.Background(), name, metav1.GetOptions{})
		},
	}
	go c.names.serve()
	return nil
}

func (s *nameServer) stop() {
	if s != nil {
		_ = s.connection.Close()
	}
}

func (s *nameServer) serve() {
	query := make([]byte, 512)
	for {
		n, from, err := s.connection.ReadFrom(query)
		if err != nil {
			return // closed
		}
		if answer, err := s.answer(query[:n]); err == nil {
			_, _ = s.connection.WriteTo(answer, from)
		}
	}
}

// answer knows A records, and that there is nothing else.
func (s *nameServer) answer(query []byte) ([]byte, error) {
	var message dnsmessage.Message
	if err := message.Unpack(query); err != nil || len(message.Questions) != 1 {
		return nil, errors.New("not a question")
	}
	question := message.Questions[0]
	answer := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: message.ID, Response: true, Authoritative: true,
			RecursionDesired: message.RecursionDesired, RecursionAvailable: true,
		},
		Questions: message.Questions,
	}
	address, err := s.lookUp(question.Name.String())
	switch {
	case apierrors.IsNotFound(err):
		answer.RCode = dnsmessage.RCodeNameError
	case err != nil:
		answer.RCode = dnsmessage.RCodeServerFailure
	case question.Type == dnsmessage.TypeA && address != nil:
		answer.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: question.Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 1},
			Body:   &dnsmessage.AResource{A: [4]byte(address)},
		}}
	}
	return answer.Pack()
}

func (s *nameServer) lookUp(name string) (net.IP, error) {
	name = strings.TrimSuffix(strings.ToLower(name), ".")
	if slices.Contains(s.upstream, name) {
		return s.gateway.To4(), nil
	}
	service, inCluster := strings.CutSuffix(name, ".svc."+clusterDomain)
	labels := strings.Split(service, ".")
	if !inCluster || len(labels) != 2 {
		return nil, apierrors.NewNotFound(corev1.Resource("services"), name)
	}
	found, err := s.services(labels[1], labels[0])
	if err != nil {
		return nil, err
	}
	return net.ParseIP(found.Spec.ClusterIP).To4(), nil
}
