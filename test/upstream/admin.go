// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// AdminPath is where another process reads what was recorded, on the
// registry's own address. What is asked there is not recorded and meets no
// fault but a refused connection:
//
//	GET  /_upstream/requests  the Requests as JSON
//	GET  /_upstream/report    the table of Report
//	POST /_upstream/reset     forgets them
const AdminPath = "/_upstream/"

func (s *Server) admin(w http.ResponseWriter, r *http.Request) {
	switch r.Method + " " + r.URL.Path {
	case "GET " + AdminPath + "requests":
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.Requests())
	case "GET " + AdminPath + "report":
		_ = s.Requests().Report(w, nil)
	case "POST " + AdminPath + "reset":
		s.Reset()
		w.WriteHeader(http.StatusNoContent)
	default:
		http.NotFound(w, r)
	}
}

// Read returns the requests of a server in another process, by its URL.
func Read(ctx context.Context, client *http.Client, url string) (Requests, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+AdminPath+"requests", nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read requests of %s: %s", url, response.Status)
	}
	var requests Requests
	if err := json.NewDecoder(response.Body).Decode(&requests); err != nil {
		return nil, fmt.Errorf("read requests of %s: %w", url, err)
	}
	return requests, nil
}
